/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SMB-Direct sockets for C programs. What the socket calls of the C library do
 * is left to them; here is what they lack. docs/socket.md explains all of it.
 *
 * Functions return -1 and set errno when they fail. Those named rdma wait for
 * the end of their operation, whether the socket blocks or not, and fetch its
 * result: one such call at a time on a socket.
 */
#ifndef SMBDIRECT_H
#define SMBDIRECT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "smbdirect_socket.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * A stream socket of AF_INET or AF_INET6. @flags: SOCK_NONBLOCK, SOCK_CLOEXEC.
 * @parameters may be NULL. EPROTONOSUPPORT: there is no kernel module.
 */
int smbdirect_socket(int family, int flags, const struct smbdirect_parameters *parameters);

/* What was agreed with the peer, or is going to be asked for. */
int smbdirect_connection_get_parameters(int fd, struct smbdirect_parameters *parameters);

/* Before connect() or listen(). EINVAL: out of range, nothing is changed. */
int smbdirect_connection_set_parameters(int fd, const struct smbdirect_parameters *parameters);

/*
 * Let the peer read memory, or write it if @remote_write; on the side that
 * connected. At most max_read_write_size bytes a call, whole pages counted.
 */
int smbdirect_rdma_v1_register(int fd, const struct iovec *memory, bool remote_write,
			       struct smbdirect_descriptor_v1 *descriptor);

/* Nobody but this process can change the memory when it returns. */
int smbdirect_rdma_v1_deregister(int fd, const struct smbdirect_descriptor_v1 *descriptor);

/*
 * Write to the peer's memory, or read it; on the side that accepted. Returns
 * the number of bytes, which is that of @iov.
 */
ssize_t smbdirect_rdma_v1_writev(int fd, const struct smbdirect_descriptor_v1 *descriptors,
				 size_t count, const struct iovec *iov, int iovcnt);
ssize_t smbdirect_rdma_v1_readv(int fd, const struct smbdirect_descriptor_v1 *descriptors,
				size_t count, const struct iovec *iov, int iovcnt);

/*
 * Put into @message a control message, kept in @control, that makes sendmsg()
 * end the peer's registration together with the frame that begins there.
 * ENOBUFS: @size is below SMBDIRECT_INVALIDATE_SPACE.
 */
#define SMBDIRECT_INVALIDATE_SPACE CMSG_SPACE(sizeof(struct smbdirect_remote_invalidate))
int smbdirect_buffer_invalidate_cmsg_prepare(struct msghdr *message, void *control, size_t size,
					     uint32_t token);

/* 1 if SMB-Direct can use a network interface, 0 if not. ENODEV: there is none. */
int smbdirect_netif_rdma_capable(const char *ifname);

#ifdef __cplusplus
}
#endif

#endif
