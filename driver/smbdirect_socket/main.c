// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Registration of protocol 257, module parameters.
 */
#include "sdsock.h"

#include <net/inet_common.h>
#include <net/protocol.h>

static unsigned int recv_credits = 255;
module_param(recv_credits, uint, 0444);
MODULE_PARM_DESC(recv_credits, "receive buffers granted to a peer (16-255, default 255)");

static unsigned int segment_size = 12288;
module_param(segment_size, uint, 0444);
MODULE_PARM_DESC(segment_size,
		 "largest SMB-Direct message in bytes (1364-12288, default 12288); frames may have recv_credits * segment_size / 2 bytes");

static unsigned int connect_timeout_ms = 10000;
module_param(connect_timeout_ms, uint, 0444);
MODULE_PARM_DESC(connect_timeout_ms,
		 "time for a peer to answer a connection request (1000-120000, default 10000)");

static unsigned int negotiate_timeout_ms = 60000;
module_param(negotiate_timeout_ms, uint, 0444);
MODULE_PARM_DESC(negotiate_timeout_ms,
		 "time for a connected peer to accept() and negotiate (1000-600000, default 60000)");

static unsigned int keepalive_interval_ms = 10000;
module_param(keepalive_interval_ms, uint, 0444);
MODULE_PARM_DESC(keepalive_interval_ms,
		 "silence after which a peer is asked for a sign of life (1000-600000, default 10000)");

static unsigned int keepalive_timeout_ms = 5000;
module_param(keepalive_timeout_ms, uint, 0444);
MODULE_PARM_DESC(keepalive_timeout_ms,
		 "time for that sign of life, then ETIMEDOUT (1000-120000, default 5000)");

unsigned int sdsock_linger_ms = 30000;
module_param_named(linger_ms, sdsock_linger_ms, uint, 0444);
MODULE_PARM_DESC(linger_ms,
		 "how long a closed socket waits for a peer that takes no data (0-600000, default 30000)");

static unsigned int log_level;
module_param(log_level, uint, 0644);
MODULE_PARM_DESC(log_level,
		 "what smbdirect says about our sockets: 0 nothing (default), 1 errors, 2 everything");

struct workqueue_struct *sdsock_event_wq;	/* work that only waits for locks */
struct workqueue_struct *sdsock_tx_wq;		/* sending: waits for the peer's credits */
struct workqueue_struct *sdsock_end_wq;		/* closing: waits until all is sent */

/* Resolving an address or a route is one round trip to a neighbour. */
#define SDSOCK_RESOLVE_TIMEOUT_MS 5000

void sdsock_fill_parameters(struct smbdirect_socket_parameters *sp)
{
	*sp = (struct smbdirect_socket_parameters) {
		.resolve_addr_timeout_msec = SDSOCK_RESOLVE_TIMEOUT_MS,
		.resolve_route_timeout_msec = SDSOCK_RESOLVE_TIMEOUT_MS,
		.rdma_connect_timeout_msec = connect_timeout_ms,
		.negotiate_timeout_msec = negotiate_timeout_ms,
		.initiator_depth = 8,
		.responder_resources = 32,
		.recv_credit_max = recv_credits,
		.send_credit_target = recv_credits,
		.max_send_size = segment_size,
		.max_recv_size = segment_size,
		/* what smbdirect's accepting side enforces whatever we say */
		.max_fragmented_recv_size = recv_credits * segment_size / 2,
		.max_read_write_size = SZ_8M,
		.max_frmr_depth = SZ_8M / PAGE_SIZE,
		.keepalive_interval_msec = keepalive_interval_ms,
		.keepalive_timeout_msec = keepalive_timeout_ms,
	};
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

int sdsock_init(struct sock *sk)
{
	struct sdsock *ss = to_sdsock(sk);

	spin_lock_init(&ss->lock);
	mutex_init(&ss->rx.reader);
	mutex_init(&ss->rx.lock);
	INIT_LIST_HEAD(&ss->rx.chunks);
	mutex_init(&ss->tx.writer);
	INIT_LIST_HEAD(&ss->tx.queue);
	init_waitqueue_head(&ss->tx.idle);
	INIT_WORK(&ss->tx.work, sdsock_tx_work);
	INIT_WORK(&ss->event_work, sdsock_event_work);
	INIT_WORK(&ss->shutdown_work, sdsock_shutdown_work);
	INIT_WORK(&ss->close_work, sdsock_close_work);
	return 0;
}

/* inet_create() calls it, without looking, when init or a BPF program fails */
static void sdsock_unhash(struct sock *sk)
{
}

static int sdsock_setsockopt(struct socket *sock, int level, int optname, sockptr_t optval,
			     unsigned int optlen)
{
	struct sock *sk = sock->sk;
	int value;

	if (level != SOL_IPV6 || sk->sk_family != AF_INET6 || optname != IPV6_V6ONLY)
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

static int sdsock_getsockopt(struct socket *sock, int level, int optname, char __user *optval,
			     int __user *optlen)
{
	struct sock *sk = sock->sk;
	int value, len;

	if (level != SOL_IPV6 || sk->sk_family != AF_INET6 || optname != IPV6_V6ONLY)
		return -ENOPROTOOPT;
	if (get_user(len, optlen))
		return -EFAULT;
	if (len < 0)
		return -EINVAL;
	value = sk->sk_ipv6only;
	len = min_t(int, len, sizeof(value));
	if (put_user(len, optlen) || copy_to_user(optval, &value, len))
		return -EFAULT;
	return 0;
}

#define SDSOCK_PROTO(_name) {						\
	.name			= _name,				\
	.owner			= THIS_MODULE,				\
	.obj_size		= sizeof(struct sdsock),		\
	.ipv6_pinfo_offset	= offsetof(struct sdsock, inet6),	\
	.init			= sdsock_init,				\
	.unhash			= sdsock_unhash,			\
}

#define SDSOCK_OPS(_family, _getname) {					\
	.family			= _family,				\
	.owner			= THIS_MODULE,				\
	.release		= sdsock_release,			\
	.bind			= sdsock_bind,				\
	.connect		= sdsock_connect,			\
	.socketpair		= sock_no_socketpair,			\
	.accept			= sdsock_accept,			\
	.getname		= _getname,				\
	.poll			= sdsock_poll,				\
	.ioctl			= sdsock_ioctl,				\
	.listen			= sdsock_listen,			\
	.shutdown		= sdsock_shutdown,			\
	.setsockopt		= sdsock_setsockopt,			\
	.getsockopt		= sdsock_getsockopt,			\
	.sendmsg		= sdsock_sendmsg,			\
	.recvmsg		= sdsock_recvmsg,			\
	.mmap			= sock_no_mmap,				\
}

static struct proto sdsock_prot = SDSOCK_PROTO("SMBDIRECT");
static struct proto sdsock6_prot = SDSOCK_PROTO("SMBDIRECTv6");
static const struct proto_ops sdsock_ops = SDSOCK_OPS(PF_INET, inet_getname);
static const struct proto_ops sdsock6_ops = SDSOCK_OPS(PF_INET6, inet6_getname);

static struct inet_protosw sdsock_protosw = {
	.type		= SOCK_STREAM,
	.protocol	= IPPROTO_SMBDIRECT,
	.prot		= &sdsock_prot,
	.ops		= &sdsock_ops,
};

static struct inet_protosw sdsock6_protosw = {
	.type		= SOCK_STREAM,
	.protocol	= IPPROTO_SMBDIRECT,
	.prot		= &sdsock6_prot,
	.ops		= &sdsock6_ops,
};

static int __init sdsock_check_range(const char *name, unsigned int value, unsigned int min,
				     unsigned int max)
{
	if (value >= min && value <= max)
		return 0;
	pr_err("%s=%u is not within %u-%u\n", name, value, min, max);
	return -EINVAL;
}

static int __init sdsock_check_parameters(void)
{
	if (sdsock_check_range("recv_credits", recv_credits, 16, 255) ||
	    sdsock_check_range("segment_size", segment_size, 1364, 3 * 4096) ||
	    sdsock_check_range("connect_timeout_ms", connect_timeout_ms, 1000, 120000) ||
	    sdsock_check_range("negotiate_timeout_ms", negotiate_timeout_ms, 1000, 600000) ||
	    sdsock_check_range("keepalive_interval_ms", keepalive_interval_ms, 1000, 600000) ||
	    sdsock_check_range("keepalive_timeout_ms", keepalive_timeout_ms, 1000, 120000) ||
	    sdsock_check_range("linger_ms", sdsock_linger_ms, 0, 600000))
		return -EINVAL;
	/* [MS-SMBD] 3.1.1.1: a peer refuses less */
	return sdsock_check_range("recv_credits * segment_size / 2",
				  recv_credits * segment_size / 2, SZ_128K, UINT_MAX);
}

static void sdsock_free_queues(void)
{
	/* this order: the end of a socket waits for its sending and its events */
	if (sdsock_end_wq)
		destroy_workqueue(sdsock_end_wq);
	if (sdsock_tx_wq)
		destroy_workqueue(sdsock_tx_wq);
	if (sdsock_event_wq)
		destroy_workqueue(sdsock_event_wq);
}

/*
 * No WQ_MEM_RECLAIM: smbdirect's workqueues, which we flush, have none. A
 * sender without credits and a closed socket that still sends each keep a
 * worker, hence the highest limit for these.
 */
static int __init sdsock_alloc_queues(void)
{
	sdsock_event_wq = alloc_workqueue("smbdirect-socket-event", WQ_UNBOUND, 0);
	sdsock_tx_wq = alloc_workqueue("smbdirect-socket-tx", WQ_UNBOUND, WQ_UNBOUND_MAX_ACTIVE);
	sdsock_end_wq = alloc_workqueue("smbdirect-socket-end", WQ_UNBOUND,
					WQ_UNBOUND_MAX_ACTIVE);
	if (sdsock_event_wq && sdsock_tx_wq && sdsock_end_wq)
		return 0;
	sdsock_free_queues();
	return -ENOMEM;
}

static int __init sdsock_module_init(void)
{
	int ret;

	ret = sdsock_check_parameters();
	if (ret)
		return ret;
	ret = sdsock_alloc_queues();
	if (ret)
		return ret;

	ret = proto_register(&sdsock_prot, 1);
	if (ret)
		goto err_wq;
	ret = proto_register(&sdsock6_prot, 1);
	if (ret)
		goto err_prot;
	ret = inet6_register_protosw(&sdsock6_protosw);
	if (ret)
		goto err_prot6;
	inet_register_protosw(&sdsock_protosw);
	return 0;

err_prot6:
	proto_unregister(&sdsock6_prot);
err_prot:
	proto_unregister(&sdsock_prot);
err_wq:
	sdsock_free_queues();
	return ret;
}

static void __exit sdsock_module_exit(void)
{
	inet_unregister_protosw(&sdsock_protosw);
	inet6_unregister_protosw(&sdsock6_protosw);
	/*
	 * Each socket holds a reference to the module until it is freed, so none
	 * is left. This waits for the work that freed the last one to return.
	 */
	sdsock_free_queues();
	proto_unregister(&sdsock6_prot);
	proto_unregister(&sdsock_prot);
}

module_init(sdsock_module_init);
module_exit(sdsock_module_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("IPPROTO_SMBDIRECT stream sockets");
MODULE_IMPORT_NS("SMBDIRECT");
/* 257 is IPPROTO_SMBDIRECT: the aliases that socket() asks modprobe for */
MODULE_ALIAS("net-pf-2-proto-257-type-1");
MODULE_ALIAS("net-pf-10-proto-257-type-1");
