// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Registration of protocol 257.
 */
#include "sdsock.h"

#include <net/inet_common.h>
#include <net/protocol.h>

#ifdef CONFIG_LOCKDEP
static struct lock_class_key sdsock_keys[2], sdsock_spinlock_keys[2];

/* Held above rdma_cm's and smbdirect's locks, which TCP's is not. */
static void sdsock_set_lock_class(struct sock *sk)
{
	if (sk->sk_family == AF_INET)
		sock_lock_init_class_and_name(sk, "slock-AF_INET-SMBDIRECT",
					      &sdsock_spinlock_keys[0],
					      "sk_lock-AF_INET-SMBDIRECT", &sdsock_keys[0]);
	else
		sock_lock_init_class_and_name(sk, "slock-AF_INET6-SMBDIRECT",
					      &sdsock_spinlock_keys[1],
					      "sk_lock-AF_INET6-SMBDIRECT", &sdsock_keys[1]);
}
#else
static void sdsock_set_lock_class(struct sock *sk)
{
}
#endif

static int sdsock_init(struct sock *sk)
{
	struct sdsock *ss = to_sdsock(sk);

	sdsock_set_lock_class(sk);
	spin_lock_init(&ss->lock);
	mutex_init(&ss->rx.reader);
	mutex_init(&ss->rx.lock);
	INIT_LIST_HEAD(&ss->rx.chunks);
	INIT_DELAYED_WORK(&ss->rx.relief, sdsock_relief_work);
	mutex_init(&ss->tx.writer);
	INIT_LIST_HEAD(&ss->tx.queue);
	init_waitqueue_head(&ss->tx.idle);
	INIT_WORK(&ss->tx.work, sdsock_tx_work);
	INIT_DELAYED_WORK(&ss->tx.ask, sdsock_ask_work);
	sdsock_init_rdma(ss);
	mutex_init(&ss->accepting);
	mutex_init(&ss->memory.lock);
	mutex_init(&ss->memory.children_lock);
	INIT_WORK(&ss->event_work, sdsock_event_work);
	INIT_WORK(&ss->shutdown_work, sdsock_shutdown_work);
	INIT_WORK(&ss->close_work, sdsock_close_work);
	INIT_LIST_HEAD(&ss->registry);
	if (!ss->memory.account) {
		int ret = sdsock_open_account(ss);

		if (ret)
			return ret;
	}
	sdsock_register(sk);
	return 0;
}

/* inet_create() calls it, without looking, when init or a BPF program fails */
static void sdsock_unhash(struct sock *sk)
{
	sdsock_unregister(sk);
	sdsock_close_account(to_sdsock(sk));
}

#define SDSOCK_PROTO(_name) {						\
	.name			= _name,				\
	.owner			= THIS_MODULE,				\
	.obj_size		= sizeof(struct sdsock),		\
	.ipv6_pinfo_offset	= offsetof(struct sdsock, inet6),	\
	.init			= sdsock_init,				\
	.unhash			= sdsock_unhash,			\
	.memory_allocated	= &sdsock_memory_allocated,		\
	.per_cpu_fw_alloc	= &sdsock_memory_reserve,		\
	.sysctl_mem		= sdsock_memory_limits,			\
	.sysctl_rmem		= &sdsock_memory_minimum,		\
	.sysctl_wmem		= &sdsock_memory_minimum,		\
}

#ifdef CONFIG_COMPAT
#define SDSOCK_COMPAT_IOCTL .compat_ioctl = sdsock_compat_ioctl,
#else
#define SDSOCK_COMPAT_IOCTL
#endif

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
	SDSOCK_COMPAT_IOCTL						\
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

static int __init sdsock_module_init(void)
{
	int ret;

	ret = sdsock_check_module_parameters();
	if (ret)
		return ret;
	ret = sdsock_memory_init();
	if (ret)
		return ret;
	ret = sdsock_check_fit();
	if (ret)
		return ret;
	ret = sdsock_alloc_queues();
	if (ret)
		return ret;
	ret = sdsock_netns_init();
	if (ret)
		goto err_wq;

	ret = proto_register(&sdsock_prot, 1);
	if (ret)
		goto err_netns;
	ret = proto_register(&sdsock6_prot, 1);
	if (ret)
		goto err_prot;
	ret = sdsock_registry_init();
	if (ret)
		goto err_prot6;
	ret = inet6_register_protosw(&sdsock6_protosw);
	if (ret)
		goto err_registry;
	inet_register_protosw(&sdsock_protosw);
	return 0;

err_registry:
	sdsock_registry_exit();
err_prot6:
	proto_unregister(&sdsock6_prot);
err_prot:
	proto_unregister(&sdsock_prot);
err_netns:
	sdsock_netns_exit();
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
	sdsock_registry_exit();
	proto_unregister(&sdsock6_prot);
	proto_unregister(&sdsock_prot);
	sdsock_netns_exit();
}

module_init(sdsock_module_init);
module_exit(sdsock_module_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("IPPROTO_SMBDIRECT stream sockets");
MODULE_IMPORT_NS("SMBDIRECT");
/* 257 is IPPROTO_SMBDIRECT: the aliases that socket() asks modprobe for */
MODULE_ALIAS("net-pf-2-proto-257-type-1");
MODULE_ALIAS("net-pf-10-proto-257-type-1");
