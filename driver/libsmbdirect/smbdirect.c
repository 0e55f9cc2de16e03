// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "smbdirect.h"

#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* The most that one read by RDMA has */
#define MOST_DATA (8 << 20)

int smbdirect_socket(int family, int flags, const struct smbdirect_parameters *parameters)
{
	int fd = socket(family, SOCK_STREAM | flags, IPPROTO_SMBDIRECT);

	if (fd >= 0 && parameters && smbdirect_connection_set_parameters(fd, parameters)) {
		int saved = errno;

		close(fd);
		errno = saved;
		return -1;
	}
	return fd;
}

int smbdirect_connection_get_parameters(int fd, struct smbdirect_parameters *parameters)
{
	socklen_t length = sizeof(*parameters);

	/* what an older module does not know stays 0 */
	memset(parameters, 0, sizeof(*parameters));
	return getsockopt(fd, SOL_SMBDIRECT, SMBDIRECT_PARAMETERS, parameters, &length);
}

int smbdirect_connection_set_parameters(int fd, const struct smbdirect_parameters *parameters)
{
	return setsockopt(fd, SOL_SMBDIRECT, SMBDIRECT_PARAMETERS, parameters,
			  sizeof(*parameters));
}

/*
 * Throw away the first result: that of an interrupted call, whose data do not fit
 * into the memory of this one.
 */
static int drop_result(int fd)
{
	union {
		char space[CMSG_SPACE(sizeof(struct smbdirect_rdma_completion))];
		struct cmsghdr align;
	} control;
	struct iovec data = { .iov_len = MOST_DATA };
	struct msghdr message = {
		.msg_iov = &data,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	ssize_t got;

	data.iov_base = malloc(MOST_DATA);
	if (!data.iov_base)
		return -1;
	do {
		got = recvmsg(fd, &message, MSG_OOB | MSG_DONTWAIT);
	} while (got < 0 && errno == EINTR);
	free(data.iov_base);
	return got < 0 ? -1 : 0;
}

/* Wait for the result whose cookie is @cookie; those of interrupted calls are dropped. */
static int collect(int fd, uint64_t cookie, const struct iovec *iov, int iovcnt,
		   struct smbdirect_rdma_completion *result)
{
	union {
		char space[CMSG_SPACE(sizeof(*result))];
		struct cmsghdr align;
	} control;
	struct msghdr message;
	struct cmsghdr *header;

	do {
		message = (struct msghdr) {
			.msg_iov = (struct iovec *)iov,
			.msg_iovlen = iovcnt,
			.msg_control = &control,
			.msg_controllen = sizeof(control),
		};
		while (recvmsg(fd, &message, MSG_OOB) < 0) {
			struct pollfd ready = { .fd = fd, .events = POLLPRI };

			if (errno == EINTR)
				continue;
			/* for our own result there is room */
			if (errno == EMSGSIZE) {
				if (drop_result(fd))
					return -1;
				continue;
			}
			if (errno != EAGAIN || (poll(&ready, 1, -1) < 0 && errno != EINTR))
				return -1;
		}
		header = CMSG_FIRSTHDR(&message);
		if (!header || header->cmsg_level != SOL_SMBDIRECT) {
			errno = EPROTO;
			return -1;
		}
		memcpy(result, CMSG_DATA(header), sizeof(*result));
	} while (result->cookie != cookie);
	if (!result->error)
		return 0;
	errno = result->error;
	return -1;
}

static uint64_t next_cookie(void)
{
	static atomic_uint_fast64_t last;

	return atomic_fetch_add(&last, 1) + 1;
}

/* @request begins with the cookie, as all of them do. */
static int operate(int fd, uint32_t type, void *request, size_t size, const struct iovec *out,
		   int outcnt, const struct iovec *in, int incnt,
		   struct smbdirect_rdma_completion *result)
{
	struct msghdr message = {
		.msg_iov = (struct iovec *)out,
		.msg_iovlen = outcnt,
		.msg_controllen = CMSG_SPACE(size),
	};
	uint64_t cookie = next_cookie();
	struct cmsghdr *header;
	ssize_t sent;

	memcpy(request, &cookie, sizeof(cookie));
	message.msg_control = calloc(1, message.msg_controllen);
	if (!message.msg_control)
		return -1;
	header = CMSG_FIRSTHDR(&message);
	header->cmsg_level = SOL_SMBDIRECT;
	header->cmsg_type = (int)type;
	header->cmsg_len = CMSG_LEN(size);
	memcpy(CMSG_DATA(header), request, size);
	do {
		sent = sendmsg(fd, &message, MSG_OOB | MSG_NOSIGNAL);
	} while (sent < 0 && errno == EINTR);
	free(message.msg_control);
	return sent < 0 ? -1 : collect(fd, cookie, in, incnt, result);
}

int smbdirect_rdma_v1_register(int fd, const struct iovec *memory, bool remote_write,
			       struct smbdirect_descriptor_v1 *descriptor)
{
	struct smbdirect_rdma_register request = {
		.flags = remote_write ? SMBDIRECT_RDMA_REMOTE_WRITE : 0,
	};
	struct smbdirect_rdma_completion result;

	if (operate(fd, SMBDIRECT_RDMA_REGISTER, &request, sizeof(request), memory, 1, NULL, 0,
		    &result))
		return -1;
	*descriptor = result.descriptor;
	return 0;
}

int smbdirect_rdma_v1_deregister(int fd, const struct smbdirect_descriptor_v1 *descriptor)
{
	struct smbdirect_rdma_deregister request = { .token = le32toh(descriptor->token) };
	struct smbdirect_rdma_completion result;

	return operate(fd, SMBDIRECT_RDMA_DEREGISTER, &request, sizeof(request), NULL, 0, NULL, 0,
		       &result);
}

static ssize_t transfer(int fd, uint32_t type, const struct smbdirect_descriptor_v1 *descriptors,
			size_t count, const struct iovec *iov, int iovcnt)
{
	bool reading = type == SMBDIRECT_RDMA_READ;
	struct smbdirect_rdma_completion result;
	struct smbdirect_rdma_transfer *request;
	size_t size = sizeof(*request) + count * sizeof(*descriptors);
	size_t length = 0;
	int ret;

	for (int i = 0; i < iovcnt; i++)
		length += iov[i].iov_len;
	if (count > SMBDIRECT_RDMA_MAX_DESCRIPTORS || length > UINT32_MAX) {
		errno = EINVAL;
		return -1;
	}
	request = calloc(1, size);
	if (!request)
		return -1;
	request->length = length;
	request->count = count;
	memcpy(request->descriptors, descriptors, count * sizeof(*descriptors));
	ret = operate(fd, type, request, size, reading ? NULL : iov, reading ? 0 : iovcnt,
		      reading ? iov : NULL, reading ? iovcnt : 0, &result);
	free(request);
	return ret ? -1 : (ssize_t)result.length;
}

ssize_t smbdirect_rdma_v1_writev(int fd, const struct smbdirect_descriptor_v1 *descriptors,
				 size_t count, const struct iovec *iov, int iovcnt)
{
	return transfer(fd, SMBDIRECT_RDMA_WRITE, descriptors, count, iov, iovcnt);
}

ssize_t smbdirect_rdma_v1_readv(int fd, const struct smbdirect_descriptor_v1 *descriptors,
				size_t count, const struct iovec *iov, int iovcnt)
{
	return transfer(fd, SMBDIRECT_RDMA_READ, descriptors, count, iov, iovcnt);
}

int smbdirect_buffer_invalidate_cmsg_prepare(struct msghdr *message, void *control, size_t size,
					     uint32_t token)
{
	struct smbdirect_remote_invalidate request = { .remote_token = token };
	struct cmsghdr *header;

	if (size < SMBDIRECT_INVALIDATE_SPACE) {
		errno = ENOBUFS;
		return -1;
	}
	memset(control, 0, SMBDIRECT_INVALIDATE_SPACE);
	message->msg_control = control;
	message->msg_controllen = SMBDIRECT_INVALIDATE_SPACE;
	header = CMSG_FIRSTHDR(message);
	header->cmsg_level = SOL_SMBDIRECT;
	header->cmsg_type = SMBDIRECT_REMOTE_INVALIDATE;
	header->cmsg_len = CMSG_LEN(sizeof(request));
	memcpy(CMSG_DATA(header), &request, sizeof(request));
	return 0;
}

int smbdirect_netif_rdma_capable(const char *ifname)
{
	struct smbdirect_netif netif = { 0 };
	int fd, ret, saved;

	if (strlen(ifname) >= sizeof(netif.name)) {
		errno = ENODEV;
		return -1;
	}
	fd = smbdirect_socket(AF_INET, SOCK_CLOEXEC, NULL);
	if (fd < 0)
		return -1;
	strcpy(netif.name, ifname);
	ret = ioctl(fd, SMBDIRECT_NETIF_RDMA_CAPABLE, &netif);
	saved = errno;
	close(fd);
	errno = saved;
	return ret ? -1 : netif.node_type != 0;
}
