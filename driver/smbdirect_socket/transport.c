// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The transport of a socket: creating it, watching it, giving it back.
 */
#include "sdsock.h"

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

	if (sdsock_peer_is_mute(ss->sc))
		queue_delayed_work(sdsock_event_wq, &ss->rx.relief, sdsock_relief_delay(ss->sc));
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

void sdsock_attach_transport(struct sdsock *ss, struct smbdirect_socket *sc)
{
	sock_owned_by_me(sdsock_sk(ss));
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

/* smbdirect expects no event on a transport that is only bound, and warns */
static int sdsock_bound_event(struct rdma_cm_id *id, struct rdma_cm_event *event)
{
	smbdirect_socket_shutdown(id->context);
	return 0;
}

/* What smbdirect will ask of it, known here before there is anything to lose */
static bool sdsock_device_usable(const struct ib_device *dev)
{
	return smbdirect_frwr_is_supported(&dev->attrs) &&
	       dev->attrs.max_send_sge >= SMBDIRECT_SEND_IO_MAX_SGE &&
	       dev->attrs.max_recv_sge >= SMBDIRECT_RECV_IO_MAX_SGE;
}

int sdsock_bind_transport(struct sdsock *ss, struct sockaddr_storage *addr)
{
	struct rdma_cm_id *id = ss->sc->rdma.cm_id;
	struct sock *sk = sdsock_sk(ss);
	int ret;

	rdma_lock_handler(id);
	id->event_handler = sdsock_bound_event;
	rdma_unlock_handler(id);
	id->route.addr.dev_addr.bound_dev_if = sk->sk_bound_dev_if;
	if (sk->sk_reuse)
		rdma_set_reuseaddr(id, 1);
	ret = smbdirect_socket_bind(ss->sc, (struct sockaddr *)addr);
	if (ret == -ENODEV)	/* an address of ours, but of no RDMA device, or not ours */
		ret = -EADDRNOTAVAIL;
	if (!ret && id->device && !sdsock_device_usable(id->device))
		ret = -EPROTONOSUPPORT;
	return ret;
}

/* Make sure that there is a transport, bound as the socket is. */
int sdsock_open_transport(struct sdsock *ss)
{
	struct sock *sk = sdsock_sk(ss);
	struct smbdirect_socket_parameters sp;
	struct smbdirect_socket *sc;
	int ret;

	sock_owned_by_me(sk);
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
	ss->tx.waited = false;
	ss->tx.asked = false;
	ss->tx.lost = false;
	ss->tx.unsure = false;
	ss->rx.frame_left = 0;
	sdsock_attach_transport(ss, sc);

	if (ss->bound) {
		ret = sdsock_bind_transport(ss, &ss->bound_addr);
		if (ret)
			sdsock_drop_transport(ss);
	}
	return ret;
}

/* No more reaches the transport, and what has is out of the device's hands. */
void sdsock_stop_io(struct sdsock *ss)
{
	sock_owned_by_me(sdsock_sk(ss));
	spin_lock(&ss->lock);
	ss->tx.closed = true;
	spin_unlock(&ss->lock);
	sdsock_drain(ss->sc);
	WRITE_ONCE(ss->tx.stopped, true);
	queue_work(sdsock_tx_wq, &ss->tx.work);
	flush_work(&ss->tx.work);
	flush_work(&ss->rdma.work);
}

/*
 * Detach the transport. What it had received stays readable; what it had not
 * sent is lost. The caller gives it back, with sdsock_release_transport().
 */
struct smbdirect_socket *sdsock_detach_transport(struct sdsock *ss)
{
	struct smbdirect_socket *sc = ss->sc;

	sock_owned_by_me(sdsock_sk(ss));
	if (!sc)
		return NULL;

	if (sdsock_sk(ss)->sk_state != TCP_LISTEN)
		trace_smbdirect_socket_disconnect(sdsock_sk(ss), 0, READ_ONCE(sc->first_error));
	sdsock_disconnect(ss, sc);
	/* tell the peer before sdsock_stop_io() breaks off: iWARP would see an abort */
	flush_work(&sc->disconnect_work);
	remove_wait_queue(&sc->status_wait, &ss->status_watch);
	remove_wait_queue(&sc->recv_io.reassembly.wait_queue, &ss->data_watch);
	remove_wait_queue(&sc->listen.wait_queue, &ss->ready_watch);
	remove_wait_queue(&sc->send_io.credits.wait_queue, &ss->credit_watch);
	remove_wait_queue(&sc->send_io.pending.zero_wait_queue, &ss->sent_watch);
	sdsock_stop_io(ss);
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
 * others of its network namespace wait instead, but for SDSOCK_RELEASES: siw may
 * take 10 s to let go of one.
 */
void sdsock_release_transport(struct sdsock *ss, struct smbdirect_socket *sc)
{
	struct semaphore *releases = &sdsock_net(sock_net(sdsock_sk(ss)))->releases;
	bool caches = sc->send_io.mem.cache;

	if (caches)
		down(releases);
	smbdirect_socket_release(sc);
	if (caches)
		up(releases);
	sdsock_uncharge_buffers(ss);
}

/* Give the transport back, and with it the hold on the RDMA device. */
void sdsock_drop_transport(struct sdsock *ss)
{
	struct smbdirect_socket *sc = sdsock_detach_transport(ss);

	if (sc)
		sdsock_release_transport(ss, sc);
}
