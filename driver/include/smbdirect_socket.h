/* SPDX-License-Identifier: GPL-2.0-or-later WITH Linux-syscall-note */
/*
 * SMB-Direct sockets: what a program and smbdirect_socket.ko agree on. Protocol,
 * level and the control message of remote invalidation are as proposed upstream;
 * the rest is ours, numbered in the same manner. docs/socket.md explains it.
 */
#ifndef SMBDIRECT_SOCKET_H
#define SMBDIRECT_SOCKET_H

#include <linux/ioctl.h>
#include <linux/types.h>

#ifndef IPPROTO_SMBDIRECT
#define IPPROTO_SMBDIRECT 257
#endif
#ifndef SOL_SMBDIRECT
#define SOL_SMBDIRECT 289
#endif

/*
 * Socket option: struct smbdirect_parameters. Set it before connect() or
 * listen(); get what was agreed with the peer after. 0 is the module's default.
 * Fields may be added at the end: the length says which a program knows.
 */
#define SMBDIRECT_PARAMETERS 1

struct smbdirect_parameters {
	__u32 recv_credit_max;		/* receive buffers granted to the peer */
	__u32 send_credit_target;	/* buffers asked of the peer */
	__u32 max_send_size;		/* bytes of a message, header included */
	__u32 max_recv_size;
	__u32 max_fragmented_send_size;	/* bytes of a frame, without its length */
	__u32 max_fragmented_recv_size;
	__u32 max_read_write_size;	/* bytes of one RDMA read, write or registration */
	__u32 connect_timeout_ms;
	__u32 negotiate_timeout_ms;
	__u32 keepalive_interval_ms;
	__u32 keepalive_timeout_ms;
	__u32 resolve_timeout_ms;	/* of an address, and of a route */
	__u32 initiator_depth;		/* RDMA reads under way */
	__u32 responder_resources;	/* of the peer; twice as many registrations */
};

#define SMBDIRECT_PARAMETERS_SIZE_VER0 56

/* [MS-SMBD] 2.2.3.1, as it travels in messages: little-endian */
struct smbdirect_descriptor_v1 {
	__le64 offset;
	__le32 token;
	__le32 length;
};

/* Control message of sendmsg(): the peer's registration ends when the frame arrives */
struct smbdirect_remote_invalidate {
	__u32 remote_token;
};

#define SMBDIRECT_REMOTE_INVALIDATE _IOW('S', 0x20, struct smbdirect_remote_invalidate)

/*
 * Control messages of sendmsg(MSG_OOB), one a call. Each is an operation whose
 * result is fetched, once, with recvmsg(MSG_OOB).
 */

/* The connecting side: let the peer access the memory that the iovec names. */
struct smbdirect_rdma_register {
	__u64 cookie;			/* returned with the result */
	__u32 flags;
	__u32 reserved;			/* 0 */
};

#define SMBDIRECT_RDMA_REMOTE_WRITE 0x1	/* the peer writes; otherwise it reads */
#define SMBDIRECT_RDMA_REGISTER _IOWR('S', 0x21, struct smbdirect_rdma_register)

struct smbdirect_rdma_deregister {
	__u64 cookie;
	__u32 token;			/* of the descriptor */
	__u32 reserved;			/* 0 */
};

#define SMBDIRECT_RDMA_DEREGISTER _IOWR('S', 0x22, struct smbdirect_rdma_deregister)

/*
 * The accepting side: read the peer's memory, or write it from the iovec. The
 * descriptors follow in the control message; the first length bytes of what
 * they name are transferred.
 */
struct smbdirect_rdma_transfer {
	__u64 cookie;
	__u32 length;			/* of a write, that of the iovec */
	__u32 count;			/* of descriptors, 1 to SMBDIRECT_RDMA_MAX_DESCRIPTORS */
	struct smbdirect_descriptor_v1 descriptors[];
};

#define SMBDIRECT_RDMA_MAX_DESCRIPTORS 256
#define SMBDIRECT_RDMA_READ _IOWR('S', 0x23, struct smbdirect_rdma_transfer)
#define SMBDIRECT_RDMA_WRITE _IOWR('S', 0x24, struct smbdirect_rdma_transfer)

/* Control message of recvmsg(MSG_OOB); what was read is in the iovec. */
struct smbdirect_rdma_completion {
	__u64 cookie;
	__u32 operation;		/* SMBDIRECT_RDMA_REGISTER ... SMBDIRECT_RDMA_WRITE */
	__u32 error;			/* an errno, or 0 */
	__u32 length;			/* bytes transferred */
	__u32 reserved;
	struct smbdirect_descriptor_v1 descriptor; /* of what was registered */
};

#define SMBDIRECT_RDMA_COMPLETION _IOR('S', 0x25, struct smbdirect_rdma_completion)

/* ioctl(): can an interface be used? */
struct smbdirect_netif {
	char name[16];
	__u32 node_type;		/* 0: no; 1: InfiniBand or RoCE; 4: iWARP */
};

#define SMBDIRECT_NETIF_RDMA_CAPABLE _IOWR('S', 0x26, struct smbdirect_netif)

#endif
