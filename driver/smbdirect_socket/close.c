// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Ends: shutdown() and close(). What userspace has written goes out first, in
 * the background, so neither blocks.
 */
#include "sdsock.h"

#include <linux/bpf-cgroup.h>

/* smbdirect completes the answer to a negotiation without waking this queue */
#define SDSOCK_PENDING_RECHECK msecs_to_jiffies(20)

static bool sdsock_tx_idle(struct sdsock *ss)
{
	return list_empty_careful(&ss->tx.queue) || READ_ONCE(ss->tx.closed);
}

static bool sdsock_acknowledged(struct smbdirect_socket *sc)
{
	return !atomic_read(&sc->send_io.pending.count) || READ_ONCE(sc->first_error);
}

/* Wait for the queue to empty, as long as the peer takes something now and then. */
static void sdsock_flush(struct sdsock *ss)
{
	unsigned long timeo = msecs_to_jiffies(sdsock_linger_ms);
	unsigned long sent, deadline;
	bool settled;

	do {
		sent = READ_ONCE(ss->tx.sent);
	} while (!wait_event_timeout(ss->tx.idle, sdsock_tx_idle(ss), timeo) &&
		 sent != READ_ONCE(ss->tx.sent));

	/*
	 * A disconnect overtakes whatever the peer's RDMA device has not yet
	 * acknowledged, such as the answer that completes its connect().
	 */
	deadline = jiffies + timeo;
	do {
		lock_sock(sdsock_sk(ss));
		settled = !ss->sc || wait_event_timeout(ss->sc->send_io.pending.zero_wait_queue,
							sdsock_acknowledged(ss->sc),
							SDSOCK_PENDING_RECHECK);
		release_sock(sdsock_sk(ss));
	} while (!settled && time_before(jiffies, deadline));
}

static unsigned int max_closing = 1024;
module_param(max_closing, uint, 0444);
MODULE_PARM_DESC(max_closing,
		 "closed sockets of a network namespace that may still send; more throw away what is left (0-, default 1024)");

/* SMB-Direct has no half-close: only the end of both directions is sent. */
void sdsock_shutdown_work(struct work_struct *work)
{
	struct sdsock *ss = container_of(work, struct sdsock, shutdown_work);
	struct sock *sk = sdsock_sk(ss);

	sdsock_flush(ss);
	lock_sock(sk);
	if (ss->sc)
		sdsock_disconnect(ss, ss->sc); /* event_work does the rest */
	release_sock(sk);
}

int sdsock_shutdown(struct socket *sock, int how)
{
	struct sock *sk = sock->sk;
	struct sdsock *ss = to_sdsock(sk);
	int ret = 0;

	how++;	/* SHUT_RD, SHUT_WR, SHUT_RDWR become the bits of SHUTDOWN_MASK */
	if (how & ~SHUTDOWN_MASK || !how)
		return -EINVAL;

	lock_sock(sk);
	switch (sk->sk_state) {
	case TCP_ESTABLISHED:
	case TCP_CLOSE_WAIT:
		smp_store_release(&sk->sk_shutdown, sk->sk_shutdown | how);
		if (sk->sk_shutdown == SHUTDOWN_MASK && ss->sc)
			queue_work(sdsock_end_wq, &ss->shutdown_work);
		break;
	case TCP_LISTEN:
		if (how & RCV_SHUTDOWN) {
			sdsock_set_state(sk, TCP_CLOSE);
			sdsock_drop_transport(ss);
		}
		break;
	case TCP_SYN_SENT:
		sdsock_set_state(sk, TCP_CLOSE);
		sdsock_drop_transport(ss);
		break;
	default:
		ret = -ENOTCONN;
	}
	sk->sk_state_change(sk);
	release_sock(sk);
	return ret;
}

/* The last user of the socket: stop all work, free what is left, let go. */
static void sdsock_finish(struct sdsock *ss)
{
	struct sock *sk = sdsock_sk(ss);
	struct sdsock_frame *frame, *next_frame;
	struct sdsock_chunk *chunk, *next_chunk;

	lock_sock(sk);
	sdsock_drop_transport(ss);
	release_sock(sk);
	cancel_work_sync(&ss->event_work);
	cancel_delayed_work_sync(&ss->rx.relief);
	cancel_work_sync(&ss->shutdown_work);
	cancel_delayed_work_sync(&ss->tx.ask);
	cancel_work_sync(&ss->tx.work);
	cancel_work_sync(&ss->rdma.work);
	sdsock_unregister(sk);

	list_for_each_entry_safe(frame, next_frame, &ss->tx.queue, list)
		sdsock_release_frame(ss, frame);
	if (ss->tx.frame)
		sdsock_release_frame(ss, ss->tx.frame);
	sdsock_free_ops(ss);
	list_for_each_entry_safe(chunk, next_chunk, &ss->rx.chunks, list)
		sdsock_free_chunk(ss, chunk);
	sdsock_uncharge_buffers(ss);
	sdsock_close_account(ss);
	sdsock_set_state(sk, TCP_CLOSE);
	sock_put(sk);
}

void sdsock_close_work(struct work_struct *work)
{
	struct sdsock *ss = container_of(work, struct sdsock, close_work);
	struct sock *sk = sdsock_sk(ss);
	struct sdsock_net *sn = sdsock_net(sock_net(sk));

	/* what the peer still does with them is for nobody */
	sdsock_free_regions(ss);
	if (!ss->discard && READ_ONCE(sk->sk_state) != TCP_SYN_SENT)
		sdsock_flush(ss);
	atomic_dec(&sn->closing);
	sdsock_finish(ss);
}

int sdsock_release(struct socket *sock)
{
	struct sock *sk = sock->sk;
	struct sdsock *ss;
	bool connected;

	if (!sk)
		return 0;
	ss = to_sdsock(sk);

	if (!sk->sk_kern_sock)
		BPF_CGROUP_RUN_PROG_INET_SOCK_RELEASE(sk);
	lock_sock(sk);
	sk->sk_shutdown = SHUTDOWN_MASK;
	connected = sk->sk_state != TCP_LISTEN && sk->sk_state != TCP_CLOSE;
	release_sock(sk);
	if (connected && sock_flag(sk, SOCK_LINGER) && sk->sk_lingertime &&
	    !(current->flags & PF_EXITING))
		wait_event_interruptible_timeout(ss->tx.idle, sdsock_tx_idle(ss),
						 sk->sk_lingertime);
	lock_sock(sk);
	sock_orphan(sk);
	sock->sk = NULL;
	release_sock(sk);

	if (connected) {
		/* SO_LINGER with a time of 0 asks for it; and peers can make sockets last */
		ss->discard = atomic_inc_return(&sdsock_net(sock_net(sk))->closing) > max_closing ||
			      (sock_flag(sk, SOCK_LINGER) && !sk->sk_lingertime);
		/* event_work discards what has arrived unread */
		queue_work(sdsock_event_wq, &ss->event_work);
		queue_work(sdsock_end_wq, &ss->close_work);
	} else {
		sdsock_finish(ss);	/* the port is free when close() returns */
	}
	return 0;
}
