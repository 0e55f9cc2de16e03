// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * poll() and the counters of bytes waiting.
 */
#include "sdsock.h"

#include <linux/compat.h>
#include <linux/poll.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <asm/ioctls.h>

static __poll_t sdsock_listen_poll(struct sdsock *ss)
{
	return sdsock_acceptable(ss) ? EPOLLIN | EPOLLRDNORM : 0;
}

__poll_t sdsock_poll(struct file *file, struct socket *sock, poll_table *wait)
{
	struct sock *sk = sock->sk;
	struct sdsock *ss = to_sdsock(sk);
	__poll_t mask = 0;
	bool readable;
	u8 shutdown;
	int state;

	sock_poll_wait(file, sock, wait);

	state = smp_load_acquire(&sk->sk_state);
	if (state == TCP_LISTEN)
		return sdsock_listen_poll(ss);
	if (ss->dead_listener)
		/* once accept() has told why, a server need not spin on it */
		return READ_ONCE(sk->sk_err) ? EPOLLIN | EPOLLRDNORM | EPOLLERR : 0;

	shutdown = READ_ONCE(sk->sk_shutdown);
	readable = sdsock_readable(ss, 0);
	/* unlike TCP: data may still be there when both directions have ended */
	if (state == TCP_CLOSE || (shutdown == SHUTDOWN_MASK && !readable))
		mask |= EPOLLHUP;
	if (shutdown & RCV_SHUTDOWN)
		mask |= EPOLLIN | EPOLLRDNORM | EPOLLRDHUP;
	if (READ_ONCE(sk->sk_err))
		mask |= EPOLLERR;
	if (state == TCP_SYN_SENT)
		return mask;

	if (readable)
		mask |= EPOLLIN | EPOLLRDNORM;
	if (sdsock_has_result(ss))
		mask |= EPOLLPRI;
	if (shutdown & SEND_SHUTDOWN || sdsock_writable(ss))
		mask |= EPOLLOUT | EPOLLWRNORM;
	return mask;
}

/* Can SMB-Direct use an interface? smbdirect looks at what lies beneath it, too. */
static int sdsock_netif_capable(struct net *net, struct smbdirect_netif __user *arg)
{
	struct net_device *dev;
	struct smbdirect_netif netif;

	if (copy_from_user(&netif, arg, sizeof(netif)))
		return -EFAULT;
	netif.name[sizeof(netif.name) - 1] = 0;
	netif.node_type = 0;

	rtnl_lock();
	dev = __dev_get_by_name(net, netif.name);
	if (dev)
		netif.node_type = smbdirect_netdev_rdma_capable_node_type(dev);
	rtnl_unlock();
	if (netif.node_type == RDMA_NODE_UNSPECIFIED)	/* which is not 0 */
		netif.node_type = 0;
	if (!dev)
		return -ENODEV;
	return copy_to_user(arg, &netif, sizeof(netif)) ? -EFAULT : 0;
}

int sdsock_ioctl(struct socket *sock, unsigned int cmd, unsigned long arg)
{
	struct sock *sk = sock->sk;

	switch (cmd) {
	case SMBDIRECT_NETIF_RDMA_CAPABLE:
		return sdsock_netif_capable(sock_net(sk), (void __user *)arg);
	case SIOCINQ:
		if (sk->sk_state == TCP_LISTEN)
			return -EINVAL;
		return put_user(sdsock_inq(to_sdsock(sk)), (int __user *)arg);
	case SIOCOUTQ:
		if (sk->sk_state == TCP_LISTEN)
			return -EINVAL;
		return put_user((int)min_t(size_t, READ_ONCE(to_sdsock(sk)->tx.bytes), INT_MAX),
				(int __user *)arg);
	default:
		return -ENOIOCTLCMD;
	}
}

#ifdef CONFIG_COMPAT
int sdsock_compat_ioctl(struct socket *sock, unsigned int cmd, unsigned long arg)
{
	return sdsock_ioctl(sock, cmd, (unsigned long)compat_ptr(arg));
}
#endif
