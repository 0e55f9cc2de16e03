// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The transport of a socket: creating it, watching it, giving it back.
 */
#include "sdsock.h"

#include <linux/semaphore.h>

/* Errors as a TCP program knows them; connect.c and recv.c report them. */
int sdsock_errno(int error)
{
	switch (error) {
	case -ECONNABORTED:
	case -ESHUTDOWN:
		return -ECONNRESET;
	case -ENODEV:	/* no RDMA device in this direction */
		return -ENETUNREACH;
	default:
		return error;
	}
}

/*
 * Wake functions run under the wait queue's lock, often in interrupt context
 * and sometimes below smbdirect's locks: pass the news on, touch nothing.
 */
static int sdsock_status_changed(wait_queue_entry_t *watch, unsigned int mode, int flags,
				 void *key)
{
	struct sdsock *ss = container_of(watch, struct sdsock, status_watch);

	queue_work(sdsock_event_wq, &ss->event_work);
	return 0;
}

static int sdsock_data_arrived(wait_queue_entry_t *watch, unsigned int mode, int flags,
			       void *key)
{
	struct sdsock *ss = container_of(watch, struct sdsock, data_watch);
	struct sock *sk = sdsock_sk(ss);

	if (sock_flag(sk, SOCK_DEAD))
		queue_work(sdsock_event_wq, &ss->event_work);
	else
		sk->sk_data_ready(sk);
	return 0;
}

static int sdsock_child_ready(wait_queue_entry_t *watch, unsigned int mode, int flags,
			      void *key)
{
	struct sock *sk = sdsock_sk(container_of(watch, struct sdsock, ready_watch));

	sk->sk_data_ready(sk);
	return 0;
}

static int sdsock_credits_came(wait_queue_entry_t *watch, unsigned int mode, int flags,
			       void *key)
{
	sdsock_tx_progress(container_of(watch, struct sdsock, credit_watch));
	return 0;
}

static int sdsock_all_sent(wait_queue_entry_t *watch, unsigned int mode, int flags, void *key)
{
	sdsock_tx_progress(container_of(watch, struct sdsock, sent_watch));
	return 0;
}

void sdsock_attach(struct sdsock *ss, struct smbdirect_socket *sc)
{
	init_waitqueue_func_entry(&ss->status_watch, sdsock_status_changed);
	init_waitqueue_func_entry(&ss->data_watch, sdsock_data_arrived);
	init_waitqueue_func_entry(&ss->ready_watch, sdsock_child_ready);
	init_waitqueue_func_entry(&ss->credit_watch, sdsock_credits_came);
	init_waitqueue_func_entry(&ss->sent_watch, sdsock_all_sent);

	spin_lock(&ss->lock);
	ss->sc = sc;
	spin_unlock(&ss->lock);

	add_wait_queue(&sc->status_wait, &ss->status_watch);
	add_wait_queue(&sc->recv_io.reassembly.wait_queue, &ss->data_watch);
	add_wait_queue(&sc->listen.wait_queue, &ss->ready_watch);
	add_wait_queue(&sc->send_io.credits.wait_queue, &ss->credit_watch);
	add_wait_queue(&sc->send_io.pending.zero_wait_queue, &ss->sent_watch);

	/* an accepted transport may have failed before we watched it */
	if (READ_ONCE(sc->first_error))
		queue_work(sdsock_event_wq, &ss->event_work);
}

/* Whose transport is it? The caller lets go of the socket. */
struct sdsock *sdsock_of_transport(struct smbdirect_socket *sc)
{
	wait_queue_entry_t *entry;
	struct sdsock *ss = NULL;

	spin_lock_irq(&sc->status_wait.lock);
	list_for_each_entry(entry, &sc->status_wait.head, entry) {
		if (entry->func == sdsock_status_changed) {
			ss = container_of(entry, struct sdsock, status_watch);
			sock_hold(sdsock_sk(ss));
			break;
		}
	}
	spin_unlock_irq(&sc->status_wait.lock);
	return ss;
}

/* Make sure that there is a transport, bound as the socket is. */
int sdsock_open(struct sdsock *ss)
{
	struct sock *sk = sdsock_sk(ss);
	struct smbdirect_socket_parameters sp;
	struct smbdirect_socket *sc;
	int ret;

	if (ss->sc)
		return 0;

	ret = smbdirect_socket_create_kern(sock_net(sk), &sc);
	if (ret)
		return ret;
	sdsock_set_logging(sc);
	sdsock_fill_parameters(ss, &sp);
	ret = smbdirect_socket_set_initial_parameters(sc, &sp);
	if (!ret)
		ret = smbdirect_socket_set_kernel_settings(sc, IB_POLL_WORKQUEUE, GFP_KERNEL);
	if (ret) {
		smbdirect_socket_release(sc);
		return ret;
	}
	ss->tx.closed = false;
	ss->tx.stopped = false;
	ss->tx.stalled = false;
	ss->tx.most_credits = 0;
	ss->tx.lost = false;
	ss->tx.unsure = false;
	ss->rx.frame_left = 0;
	sdsock_attach(ss, sc);

	if (ss->bound) {
		ret = sdsock_bind_transport(ss, &ss->bound_addr);
		if (ret)
			sdsock_detach(ss);
	}
	return ret;
}

/*
 * Start the end of a transport. smbdirect's connection manager handlers look
 * for an error only when they begin: one that is set while they run makes them
 * warn, and arm a timer that outlives the transport. A listener on all addresses
 * has a handler running for each device, under that device's lock, not under its
 * own.
 */
void sdsock_disconnect(struct sdsock *ss, struct smbdirect_socket *sc)
{
	rdma_lock_handler(sc->rdma.cm_id);
	mutex_lock(&ss->accepting);
	smbdirect_socket_shutdown(sc);
	mutex_unlock(&ss->accepting);
	rdma_unlock_handler(sc->rdma.cm_id);
}

/*
 * Wait until what arrived before the disconnect has been put on the reassembly
 * list: the disconnect event can overtake the completions of receives.
 */
static void sdsock_settle(struct smbdirect_socket *sc)
{
	rdma_lock_handler(sc->rdma.cm_id);
	if (sc->ib.qp)
		ib_drain_qp(sc->ib.qp);
	rdma_unlock_handler(sc->rdma.cm_id);
	flush_work(&sc->connect.work);
}

/* No more reaches the transport, and what has is out of the device's hands. */
static void sdsock_stop(struct sdsock *ss)
{
	spin_lock(&ss->lock);
	ss->tx.closed = true;
	spin_unlock(&ss->lock);
	sdsock_settle(ss->sc);
	WRITE_ONCE(ss->tx.stopped, true);
	queue_work(sdsock_tx_wq, &ss->tx.work);
	flush_work(&ss->tx.work);
	flush_work(&ss->rdma.work);
}

/*
 * Part with the transport. What it had received stays readable; what it had not
 * sent is lost. The caller gives it back, with sdsock_give_back().
 */
static struct smbdirect_socket *sdsock_part(struct sdsock *ss)
{
	struct smbdirect_socket *sc = ss->sc;

	if (!sc)
		return NULL;

	if (sdsock_sk(ss)->sk_state != TCP_LISTEN)
		trace_smbdirect_socket_disconnect(sdsock_sk(ss), 0, READ_ONCE(sc->first_error));
	sdsock_disconnect(ss, sc);
	/* tell the peer before sdsock_stop() breaks off: iWARP would see an abort */
	flush_work(&sc->disconnect_work);
	remove_wait_queue(&sc->status_wait, &ss->status_watch);
	remove_wait_queue(&sc->recv_io.reassembly.wait_queue, &ss->data_watch);
	remove_wait_queue(&sc->listen.wait_queue, &ss->ready_watch);
	remove_wait_queue(&sc->send_io.credits.wait_queue, &ss->credit_watch);
	remove_wait_queue(&sc->send_io.pending.zero_wait_queue, &ss->sent_watch);
	sdsock_stop(ss);
	sdsock_free_regions(ss);

	mutex_lock(&ss->rx.lock);
	if (!sock_flag(sdsock_sk(ss), SOCK_DEAD))
		sdsock_salvage(ss);
	spin_lock(&ss->lock);
	ss->sc = NULL;
	spin_unlock(&ss->lock);
	mutex_unlock(&ss->rx.lock);
	sdsock_drop_buffers(ss, sc);
	return sc;
}

/*
 * A connection of smbdirect's has slab caches of its own. Destroying one waits
 * for RCU under a lock that making one takes, too: so a new connection would wait
 * for all that end at the same time, longer than its peer has patience. Here the
 * others wait instead, but for a few: siw may take 10 s to let go of one.
 */
static DEFINE_SEMAPHORE(sdsock_releases, 4);

static void sdsock_give_back(struct sdsock *ss, struct smbdirect_socket *sc)
{
	bool caches = sc->send_io.mem.cache;

	if (caches)
		down(&sdsock_releases);
	smbdirect_socket_release(sc);
	if (caches)
		up(&sdsock_releases);
	sdsock_uncharge_buffers(ss);
}

/* Give the transport back, and with it the hold on the RDMA device. */
void sdsock_detach(struct sdsock *ss)
{
	struct smbdirect_socket *sc = sdsock_part(ss);

	if (sc)
		sdsock_give_back(ss, sc);
}

static void sdsock_fail(struct sock *sk, int error, int state)
{
	if (error) {
		WRITE_ONCE(sk->sk_err, -error);
		trace_smbdirect_socket_error(sk, 0, error);
	}
	/* pairs with the reader's smp_load_acquire(): salvaged data comes first */
	smp_store_release(&sk->sk_shutdown, SHUTDOWN_MASK);
	sdsock_set_state(sk, state);
}

/* Is this how a transport ends whose peer, or whose owner, just closed it? */
static bool sdsock_orderly(struct smbdirect_socket *sc, int error)
{
	/* smbdirect's words for the disconnect of the peer, and for our own */
	if (error == -ECONNRESET || error == -ESHUTDOWN)
		return true;
	/* iWARP flushes the receives first: an error, unless a send failed as well */
	return error == -ECONNABORTED && sc->ib.dev &&
	       rdma_protocol_iwarp(sc->ib.dev, sc->rdma.cm_id->port_num) &&
	       !atomic_read(&sc->send_io.pending.count);
}

/*
 * The transport of a connection, or of an attempt at one, has failed. Returns it
 * for the caller to give back: that takes a few tenths of a second, and who
 * waits for the end of the connection should not wait for that as well.
 */
static struct smbdirect_socket *sdsock_connection_over(struct sdsock *ss)
{
	struct sock *sk = sdsock_sk(ss);
	struct smbdirect_socket *sc = ss->sc;
	int error = READ_ONCE(sc->first_error);
	bool orderly;

	sdsock_stop(ss);
	orderly = sdsock_orderly(sc, error);
	if (ss->tx.unsure && atomic_read(&sc->send_io.pending.count))
		ss->tx.lost = true;
	if (sk->sk_state == TCP_SYN_SENT) {
		if (!sdsock_negotiated(sc)) {
			if (error == -EINVAL)	/* of a device that has too little of something */
				error = -EPROTONOSUPPORT;
			/* the next attempt may need the address that it holds */
			sdsock_detach(ss);
			sdsock_fail(sk, sdsock_errno(error), TCP_CLOSE);
			return NULL;
		}
		/* accepted, and closed before we could look: a connection at its end */
		sdsock_connected(ss);
	}
	sdsock_part(ss);
	if (orderly)
		error = ss->rx.frame_left || ss->tx.lost ? -ECONNRESET : 0;
	sdsock_fail(sk, sdsock_errno(error), TCP_CLOSE_WAIT);
	return sc;
}

void sdsock_event_work(struct work_struct *work)
{
	struct sdsock *ss = container_of(work, struct sdsock, event_work);
	struct smbdirect_socket *sc, *over = NULL;
	struct sock *sk = sdsock_sk(ss);

	lock_sock(sk);
	sc = ss->sc;
	if (!sc)
		goto out;

	if (!READ_ONCE(sc->first_error)) {
		if (sk->sk_state == TCP_SYN_SENT &&
		    READ_ONCE(sc->status) == SMBDIRECT_SOCKET_CONNECTED) {
			sdsock_connected(ss);
			sk->sk_state_change(sk);
		}
		if (sock_flag(sk, SOCK_DEAD))
			sdsock_discard(ss);
		goto out;
	}

	switch (sk->sk_state) {
	case TCP_SYN_SENT:
	case TCP_ESTABLISHED:
		over = sdsock_connection_over(ss);
		break;
	case TCP_LISTEN:
		ss->dead_listener = true;
		sdsock_fail(sk, READ_ONCE(sc->first_error), TCP_CLOSE);
		sdsock_detach(ss);
		break;
	default:
		/* only bound: the next call that needs a transport makes one */
		sdsock_detach(ss);
		goto out;
	}
	sk->sk_state_change(sk);
	if (sk->sk_err)
		sk_error_report(sk);
out:
	release_sock(sk);
	if (over)
		sdsock_give_back(ss, over);
}
