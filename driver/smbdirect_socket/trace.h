/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Tracepoints: /sys/kernel/tracing/events/smbdirect_socket. What smbdirect does
 * beneath is log_level's.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM smbdirect_socket

#if !defined(SDSOCK_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define SDSOCK_TRACE_H

#include <linux/tracepoint.h>

/* A socket is known by its inode, as in /proc/net/smbdirect, and by its ports. */
#define SDSOCK_TRACE_FIELDS						\
	__field(u64, inode)						\
	__field(u16, local_port)					\
	__field(u16, peer_port)

#define SDSOCK_TRACE_ASSIGN						\
	__entry->inode = sock_i_ino(sk);				\
	__entry->local_port = inet_sk(sk)->inet_num;			\
	__entry->peer_port = ntohs(inet_sk(sk)->inet_dport)

DECLARE_EVENT_CLASS(smbdirect_socket_bytes,
	TP_PROTO(const struct sock *sk, size_t bytes, int error),
	TP_ARGS(sk, bytes, error),
	TP_STRUCT__entry(
		SDSOCK_TRACE_FIELDS
		__field(u64, bytes)
		__field(int, error)
	),
	TP_fast_assign(
		SDSOCK_TRACE_ASSIGN;
		__entry->bytes = bytes;
		__entry->error = error;
	),
	TP_printk("inode=%llu local_port=%u peer_port=%u bytes=%llu error=%d",
		  __entry->inode, __entry->local_port, __entry->peer_port,
		  __entry->bytes, __entry->error)
);

#define SDSOCK_BYTES_EVENT(_name)					\
	DEFINE_EVENT(smbdirect_socket_bytes, smbdirect_socket_##_name,	\
		TP_PROTO(const struct sock *sk, size_t bytes, int error), \
		TP_ARGS(sk, bytes, error))

SDSOCK_BYTES_EVENT(connect);
SDSOCK_BYTES_EVENT(send);
SDSOCK_BYTES_EVENT(receive);
SDSOCK_BYTES_EVENT(disconnect);
SDSOCK_BYTES_EVENT(error);

/* A negotiation is complete. */
DECLARE_EVENT_CLASS(smbdirect_socket_agreed,
	TP_PROTO(const struct sock *sk, const struct smbdirect_parameters *p),
	TP_ARGS(sk, p),
	TP_STRUCT__entry(
		SDSOCK_TRACE_FIELDS
		__field(u32, recv_credit_max)
		__field(u32, send_credit_target)
		__field(u32, max_send_size)
		__field(u32, max_recv_size)
		__field(u32, max_fragmented_send_size)
		__field(u32, max_fragmented_recv_size)
		__field(u32, max_read_write_size)
	),
	TP_fast_assign(
		SDSOCK_TRACE_ASSIGN;
		__entry->recv_credit_max = p->recv_credit_max;
		__entry->send_credit_target = p->send_credit_target;
		__entry->max_send_size = p->max_send_size;
		__entry->max_recv_size = p->max_recv_size;
		__entry->max_fragmented_send_size = p->max_fragmented_send_size;
		__entry->max_fragmented_recv_size = p->max_fragmented_recv_size;
		__entry->max_read_write_size = p->max_read_write_size;
	),
	TP_printk("inode=%llu local_port=%u peer_port=%u recv_credit_max=%u send_credit_target=%u max_send_size=%u max_recv_size=%u max_fragmented_send_size=%u max_fragmented_recv_size=%u max_read_write_size=%u",
		  __entry->inode, __entry->local_port, __entry->peer_port,
		  __entry->recv_credit_max, __entry->send_credit_target,
		  __entry->max_send_size, __entry->max_recv_size,
		  __entry->max_fragmented_send_size, __entry->max_fragmented_recv_size,
		  __entry->max_read_write_size)
);

#define SDSOCK_AGREED_EVENT(_name)					\
	DEFINE_EVENT(smbdirect_socket_agreed, smbdirect_socket_##_name,	\
		TP_PROTO(const struct sock *sk, const struct smbdirect_parameters *p), \
		TP_ARGS(sk, p))

SDSOCK_AGREED_EVENT(connected);
SDSOCK_AGREED_EVENT(accept);

/* An operation of sendmsg(MSG_OOB) has ended. */
TRACE_EVENT(smbdirect_socket_rdma,
	TP_PROTO(const struct sock *sk, u32 operation, size_t bytes, int error),
	TP_ARGS(sk, operation, bytes, error),
	TP_STRUCT__entry(
		SDSOCK_TRACE_FIELDS
		__field(u32, operation)
		__field(u64, bytes)
		__field(int, error)
	),
	TP_fast_assign(
		SDSOCK_TRACE_ASSIGN;
		__entry->operation = operation;
		__entry->bytes = bytes;
		__entry->error = error;
	),
	TP_printk("inode=%llu local_port=%u peer_port=%u operation=%s bytes=%llu error=%d",
		  __entry->inode, __entry->local_port, __entry->peer_port,
		  __print_symbolic(_IOC_NR(__entry->operation), { 0x21, "register" },
				   { 0x22, "deregister" }, { 0x23, "read" }, { 0x24, "write" }),
		  __entry->bytes, __entry->error)
);

#endif

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
