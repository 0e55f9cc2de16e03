// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Module parameters, and the socket options: parameters of a connection.
 */
#include "sdsock.h"

static unsigned int recv_credits = 255;
module_param(recv_credits, uint, 0444);
MODULE_PARM_DESC(recv_credits, "receive buffers granted to a peer (16-1024, default 255)");

static unsigned int segment_size = 12288;
module_param(segment_size, uint, 0444);
MODULE_PARM_DESC(segment_size,
		 "largest SMB-Direct message in bytes (128-12288, default 12288); frames may have recv_credits * segment_size / 2 bytes, at least 131072");

static unsigned int connect_timeout_ms = 10000;
module_param(connect_timeout_ms, uint, 0444);
MODULE_PARM_DESC(connect_timeout_ms,
		 "time for a peer to answer a connection request (100-120000, default 10000)");

static unsigned int negotiate_timeout_ms = 60000;
module_param(negotiate_timeout_ms, uint, 0444);
MODULE_PARM_DESC(negotiate_timeout_ms,
		 "time for a connected peer to accept() and negotiate (100-600000, default 60000)");

static unsigned int keepalive_interval_ms = 10000;
module_param(keepalive_interval_ms, uint, 0444);
MODULE_PARM_DESC(keepalive_interval_ms,
		 "silence after which a peer is asked for a sign of life (100-600000, default 10000)");

static unsigned int keepalive_timeout_ms = 5000;
module_param(keepalive_timeout_ms, uint, 0444);
MODULE_PARM_DESC(keepalive_timeout_ms,
		 "time for that sign of life, then ETIMEDOUT (100-120000, default 5000)");

unsigned int sdsock_linger_ms = 30000;
module_param_named(linger_ms, sdsock_linger_ms, uint, 0444);
MODULE_PARM_DESC(linger_ms,
		 "how long a closed socket waits for a peer that takes no data (0-600000, default 30000)");

static unsigned int log_level;
module_param(log_level, uint, 0644);
MODULE_PARM_DESC(log_level,
		 "what smbdirect says about our sockets: 0 nothing (default), 1 errors, 2 everything");

#define SDSOCK_RESOLVE_TIMEOUT_MS 5000
#define SDSOCK_MAX_LINGER_MS 600000
/* What smbdirect's sender can gather: its 6 entries less those for headers */
#define SDSOCK_MAX_SEGMENT (3 * 4096)

/* What a value other than 0 must lie within */
static const struct sdsock_range {
	const char *name;
	size_t offset;
	u32 min;
	u32 max;
} sdsock_ranges[] = {
#define RANGE(_field, _min, _max) \
	{ #_field, offsetof(struct smbdirect_parameters, _field), _min, _max }
	RANGE(recv_credit_max, 16, 1024),
	RANGE(send_credit_target, 16, 1024),
	RANGE(max_send_size, SMBDIRECT_MIN_RECEIVE_SIZE, SDSOCK_MAX_SEGMENT),
	RANGE(max_recv_size, SMBDIRECT_MIN_RECEIVE_SIZE, SDSOCK_MAX_SEGMENT),
	RANGE(max_fragmented_send_size, 1, SDSOCK_MAX_FRAME),
	RANGE(max_fragmented_recv_size, SMBDIRECT_MIN_FRAGMENTED_SIZE, SDSOCK_MAX_FRAME),
	RANGE(max_read_write_size, PAGE_SIZE, SDSOCK_MAX_READ_WRITE),
	RANGE(connect_timeout_ms, 100, 120000),
	RANGE(negotiate_timeout_ms, 100, 600000),
	RANGE(keepalive_interval_ms, 100, 600000),
	RANGE(keepalive_timeout_ms, 100, 120000),
	RANGE(resolve_timeout_ms, 100, 120000),
	RANGE(initiator_depth, 1, 128),
	RANGE(responder_resources, 1, 128),
};

static u32 sdsock_value(const struct smbdirect_parameters *p, const struct sdsock_range *range)
{
	return *(const u32 *)((const u8 *)p + range->offset);
}

static const struct sdsock_range *sdsock_out_of_range(const struct smbdirect_parameters *p)
{
	for (size_t i = 0; i < ARRAY_SIZE(sdsock_ranges); i++) {
		u32 value = sdsock_value(p, &sdsock_ranges[i]);

		if (value && (value < sdsock_ranges[i].min || value > sdsock_ranges[i].max))
			return &sdsock_ranges[i];
	}
	return NULL;
}

/* What a socket asks for: its own values, and the module's where it has none. */
static void sdsock_wanted(const struct sdsock *ss, struct smbdirect_parameters *p)
{
	*p = ss->wanted;
#define DEFAULT(_field, _value) (p->_field = p->_field ?: (_value))
	DEFAULT(recv_credit_max, recv_credits);
	DEFAULT(send_credit_target, recv_credits);
	DEFAULT(max_send_size, segment_size);
	DEFAULT(max_recv_size, segment_size);
	DEFAULT(max_fragmented_send_size, SDSOCK_MAX_FRAME);
	DEFAULT(max_fragmented_recv_size,
		clamp_t(u32, p->recv_credit_max * p->max_recv_size / 2,
			SMBDIRECT_MIN_FRAGMENTED_SIZE, SDSOCK_MAX_FRAME));
	DEFAULT(max_read_write_size, SDSOCK_MAX_READ_WRITE);
	DEFAULT(connect_timeout_ms, connect_timeout_ms);
	DEFAULT(negotiate_timeout_ms, negotiate_timeout_ms);
	DEFAULT(keepalive_interval_ms, keepalive_interval_ms);
	DEFAULT(keepalive_timeout_ms, keepalive_timeout_ms);
	DEFAULT(resolve_timeout_ms, SDSOCK_RESOLVE_TIMEOUT_MS);
	DEFAULT(initiator_depth, 8);
	DEFAULT(responder_resources, 32);
}

void sdsock_fill_parameters(const struct sdsock *ss, struct smbdirect_socket_parameters *sp)
{
	struct smbdirect_parameters p;

	sdsock_wanted(ss, &p);
	*sp = (struct smbdirect_socket_parameters) {
		.resolve_addr_timeout_msec = p.resolve_timeout_ms,
		.resolve_route_timeout_msec = p.resolve_timeout_ms,
		.rdma_connect_timeout_msec = p.connect_timeout_ms,
		.negotiate_timeout_msec = p.negotiate_timeout_ms,
		.initiator_depth = p.initiator_depth,
		.responder_resources = p.responder_resources,
		.recv_credit_max = p.recv_credit_max,
		.send_credit_target = p.send_credit_target,
		.max_send_size = p.max_send_size,
		.max_recv_size = p.max_recv_size,
		.max_fragmented_recv_size = p.max_fragmented_recv_size,
		.max_read_write_size = p.max_read_write_size,
		.max_frmr_depth = p.max_read_write_size / PAGE_SIZE,
		.keepalive_interval_msec = p.keepalive_interval_ms,
		.keepalive_timeout_msec = p.keepalive_timeout_ms,
	};
}

/*
 * A transport that bind() made knows the parameters of that time. The lock
 * keeps out the handler that ends it when its device goes away.
 */
int sdsock_apply_parameters(struct sdsock *ss)
{
	struct smbdirect_socket *sc = ss->sc;
	int ret = 0;

	sock_owned_by_me(sdsock_sk(ss));
	rdma_lock_handler(sc->rdma.cm_id);
	if (sc->first_error)
		ret = sc->first_error;
	else if (sc->status == SMBDIRECT_SOCKET_CREATED)
		sdsock_fill_parameters(ss, &sc->parameters);
	rdma_unlock_handler(sc->rdma.cm_id);
	return ret;
}

/*
 * smbdirect's accepting side announces recv_credits * segment_size / 2 as the
 * largest frame it takes, whatever it was told, and less than any peer may
 * accept if that peer's segments are small. sdsock_pull() takes frames apart as
 * they come, so their size does not depend on the number of buffers.
 */
void sdsock_size_children(struct sdsock *ss)
{
	struct smbdirect_socket *sc = ss->sc, *child;
	struct smbdirect_parameters p;

	sdsock_wanted(ss, &p);
	spin_lock_irq(&sc->listen.lock);
	list_for_each_entry(child, &sc->listen.ready, accept.list)
		child->parameters.max_fragmented_recv_size = p.max_fragmented_recv_size;
	spin_unlock_irq(&sc->listen.lock);
}

/* What both sides agreed on; it outlives the transport. */
void sdsock_set_agreed(struct sdsock *ss)
{
	const struct smbdirect_socket_parameters *sp = &ss->sc->parameters;
	struct smbdirect_parameters p;

	sdsock_wanted(ss, &p);
	p.recv_credit_max = sp->recv_credit_max;
	p.send_credit_target = sp->send_credit_target;
	p.max_send_size = sp->max_send_size;
	p.max_recv_size = sp->max_recv_size;
	p.max_fragmented_send_size = min(sp->max_fragmented_send_size,
					 p.max_fragmented_send_size);
	p.max_fragmented_recv_size = sp->max_fragmented_recv_size;
	p.max_read_write_size = sp->max_read_write_size;
	p.initiator_depth = sp->initiator_depth;
	p.responder_resources = sp->responder_resources;
	ss->agreed = p;
	ss->max_frame = min(p.max_fragmented_send_size, SDSOCK_MAX_FRAME);
}

static int sdsock_set_parameters(struct sock *sk, sockptr_t optval, unsigned int optlen)
{
	struct sdsock *ss = to_sdsock(sk);
	struct smbdirect_parameters p;
	int ret;

	if (optlen < SMBDIRECT_PARAMETERS_SIZE_VER0)
		return -EINVAL;
	if (optlen > PAGE_SIZE)
		return -E2BIG;
	ret = copy_struct_from_sockptr(&p, sizeof(p), optval, optlen);
	if (ret)
		return ret;
	if (sdsock_out_of_range(&p))
		return -EINVAL;

	lock_sock(sk);
	switch (sk->sk_state) {
	case TCP_CLOSE:
		ss->wanted = p;
		break;
	case TCP_LISTEN:
		ret = -EINVAL;
		break;
	default:
		ret = -EISCONN;
	}
	release_sock(sk);
	return ret;
}

static void sdsock_get_parameters(struct sock *sk, struct smbdirect_parameters *p)
{
	struct sdsock *ss = to_sdsock(sk);

	lock_sock(sk);
	switch (sk->sk_state) {
	case TCP_ESTABLISHED:
	case TCP_CLOSE_WAIT:
		*p = ss->agreed;
		break;
	default:
		sdsock_wanted(ss, p);
	}
	release_sock(sk);
}

static bool sdsock_is_v6only(const struct sock *sk, int level, int optname)
{
	return level == SOL_IPV6 && sk->sk_family == AF_INET6 && optname == IPV6_V6ONLY;
}

int sdsock_setsockopt(struct socket *sock, int level, int optname, sockptr_t optval,
		      unsigned int optlen)
{
	struct sock *sk = sock->sk;
	int value;

	if (level == SOL_SMBDIRECT && optname == SMBDIRECT_PARAMETERS)
		return sdsock_set_parameters(sk, optval, optlen);
	if (!sdsock_is_v6only(sk, level, optname))
		return -ENOPROTOOPT;
	if (optlen < sizeof(value))
		return -EINVAL;
	if (copy_from_sockptr(&value, optval, sizeof(value)))
		return -EFAULT;
	lock_sock(sk);
	if (to_sdsock(sk)->bound || sk->sk_state != TCP_CLOSE) {
		release_sock(sk);
		return -EINVAL;
	}
	sk->sk_ipv6only = !!value;
	release_sock(sk);
	return 0;
}

int sdsock_getsockopt(struct socket *sock, int level, int optname, char __user *optval,
		      int __user *optlen)
{
	struct sock *sk = sock->sk;
	union {
		struct smbdirect_parameters p;
		int value;
	} out;
	int size, len;

	if (get_user(len, optlen))
		return -EFAULT;
	if (len < 0)
		return -EINVAL;
	if (level == SOL_SMBDIRECT && optname == SMBDIRECT_PARAMETERS) {
		sdsock_get_parameters(sk, &out.p);
		size = sizeof(out.p);
	} else if (sdsock_is_v6only(sk, level, optname)) {
		out.value = sk->sk_ipv6only;
		size = sizeof(out.value);
	} else {
		return -ENOPROTOOPT;
	}
	len = min(len, size);
	if (put_user(len, optlen) || copy_to_user(optval, &out, len))
		return -EFAULT;
	return 0;
}

static bool sdsock_log_needed(struct smbdirect_socket *sc, void *private_ptr,
			      unsigned int lvl, unsigned int cls)
{
	return unlikely(lvl < READ_ONCE(log_level)) && net_ratelimit();
}

static void sdsock_log(struct smbdirect_socket *sc, const char *func, unsigned int line,
		       void *private_ptr, unsigned int lvl, unsigned int cls,
		       struct va_format *vaf)
{
	pr_info("%s:%u %pV", func, line, vaf);
}

void sdsock_set_logging(struct smbdirect_socket *sc)
{
	smbdirect_socket_set_logging(sc, NULL, sdsock_log_needed, sdsock_log);
}

int __init sdsock_check_module_parameters(void)
{
	const struct smbdirect_parameters p = {
		.recv_credit_max = recv_credits ?: U32_MAX,
		.max_recv_size = segment_size ?: U32_MAX,
		.connect_timeout_ms = connect_timeout_ms ?: U32_MAX,
		.negotiate_timeout_ms = negotiate_timeout_ms ?: U32_MAX,
		.keepalive_interval_ms = keepalive_interval_ms ?: U32_MAX,
		.keepalive_timeout_ms = keepalive_timeout_ms ?: U32_MAX,
	};
	const struct sdsock_range *bad = sdsock_out_of_range(&p);

	BUILD_BUG_ON(sizeof(struct smbdirect_parameters) < SMBDIRECT_PARAMETERS_SIZE_VER0);
	if (bad) {
		pr_err("%s is not within %u-%u\n", bad->name, bad->min, bad->max);
		return -EINVAL;
	}
	if (sdsock_linger_ms > SDSOCK_MAX_LINGER_MS) {
		pr_err("linger_ms is not within 0-%u\n", SDSOCK_MAX_LINGER_MS);
		return -EINVAL;
	}
	return 0;
}
