// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The sockets of a network namespace, shown in /proc/net/smbdirect. Not sock_diag: its protocols are 8 bits wide, and
 * inet_diag knows only those that have a table of hashed sockets.
 */
#include "sdsock.h"

#include <linux/proc_fs.h>
#include <linux/seq_file.h>

void sdsock_register(struct sock *sk)
{
	struct sdsock_net *sn = sdsock_net(sock_net(sk));

	mutex_lock(&sn->lock);
	list_add_tail(&to_sdsock(sk)->registry, &sn->sockets);
	mutex_unlock(&sn->lock);
}

/* May be called more than once; the socket is not shown any more when it returns. */
void sdsock_unregister(struct sock *sk)
{
	struct sdsock_net *sn = sdsock_net(sock_net(sk));

	mutex_lock(&sn->lock);
	list_del_init(&to_sdsock(sk)->registry);
	mutex_unlock(&sn->lock);
}

#ifdef CONFIG_PROC_FS
static void *sdsock_seq_start(struct seq_file *m, loff_t *pos)
{
	struct sdsock_net *sn = sdsock_net(seq_file_net(m));

	mutex_lock(&sn->lock);
	return seq_list_start_head(&sn->sockets, *pos);
}

static void *sdsock_seq_next(struct seq_file *m, void *v, loff_t *pos)
{
	return seq_list_next(v, &sdsock_net(seq_file_net(m))->sockets, pos);
}

static void sdsock_seq_stop(struct seq_file *m, void *v)
{
	mutex_unlock(&sdsock_net(seq_file_net(m))->lock);
}

static const char *sdsock_state_name(const struct sdsock *ss, int state)
{
	switch (state) {
	case TCP_LISTEN:
		return "LISTEN";
	case TCP_SYN_SENT:
		return "CONNECTING";
	case TCP_ESTABLISHED:
		return sock_flag(&ss->inet.sk, SOCK_DEAD) ? "CLOSING" : "CONNECTED";
	case TCP_CLOSE_WAIT:
		return "ENDED";
	default:
		return ss->bound ? "BOUND" : "CLOSED";
	}
}

static void sdsock_show_address(struct seq_file *m, const struct sock *sk, bool peer)
{
	const struct inet_sock *inet = inet_sk(sk);
	u16 port = ntohs(peer ? inet->inet_dport : inet->inet_sport);

	if (sk->sk_family == AF_INET6)
		seq_printf(m, " [%pI6c]:%u", peer ? &sk->sk_v6_daddr : &sk->sk_v6_rcv_saddr, port);
	else
		seq_printf(m, " %pI4:%u", peer ? &inet->inet_daddr : &inet->inet_rcv_saddr, port);
}

static int sdsock_seq_show(struct seq_file *m, void *v)
{
	char device[IB_DEVICE_NAME_MAX] = "-";
	int send_credits = 0, recv_credits = 0;
	size_t queued, arrived, ops;
	struct sdsock *ss;
	struct sock *sk;

	if (v == &sdsock_net(seq_file_net(m))->sockets) {
		seq_puts(m, "state local peer device send_credits recv_credits max_frame "
			    "tx_queue rx_queue registrations rdma uid inode\n");
		return 0;
	}
	ss = list_entry(v, struct sdsock, registry);
	sk = sdsock_sk(ss);

	/* the transport stays while this lock is held */
	spin_lock(&ss->lock);
	arrived = READ_ONCE(ss->rx.bytes);
	queued = ss->tx.bytes;
	ops = ss->rdma.ops;
	if (ss->sc) {
		const struct ib_device *dev = READ_ONCE(ss->sc->ib.dev);

		if (dev)
			strscpy(device, dev_name(&dev->dev), sizeof(device));
		send_credits = atomic_read(&ss->sc->send_io.credits.count);
		recv_credits = atomic_read(&ss->sc->recv_io.credits.count);
		arrived += max(0, READ_ONCE(ss->sc->recv_io.reassembly.data_length));
	}
	spin_unlock(&ss->lock);

	seq_puts(m, sdsock_state_name(ss, smp_load_acquire(&sk->sk_state)));
	sdsock_show_address(m, sk, false);
	sdsock_show_address(m, sk, true);
	seq_printf(m, " %s %d %d %u %zu %zu %u %zu %u %llu\n", device, send_credits, recv_credits,
		   READ_ONCE(ss->max_frame), queued, arrived, READ_ONCE(ss->rdma.num_regions), ops,
		   from_kuid_munged(seq_user_ns(m), sk_uid(sk)), sock_i_ino(sk));
	return 0;
}

static const struct seq_operations sdsock_seq_ops = {
	.start	= sdsock_seq_start,
	.next	= sdsock_seq_next,
	.stop	= sdsock_seq_stop,
	.show	= sdsock_seq_show,
};

static int __net_init sdsock_net_init(struct net *net)
{
	return proc_create_net("smbdirect", 0444, net->proc_net, &sdsock_seq_ops,
			       sizeof(struct seq_net_private)) ? 0 : -ENOMEM;
}

static void __net_exit sdsock_net_exit(struct net *net)
{
	remove_proc_entry("smbdirect", net->proc_net);
}

static struct pernet_operations sdsock_net_ops = {
	.init	= sdsock_net_init,
	.exit	= sdsock_net_exit,
};

int __init sdsock_registry_init(void)
{
	return register_pernet_subsys(&sdsock_net_ops);
}

void sdsock_registry_exit(void)
{
	unregister_pernet_subsys(&sdsock_net_ops);
}
#else
int __init sdsock_registry_init(void)
{
	return 0;
}

void sdsock_registry_exit(void)
{
}
#endif
