// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Passive opening.
 */
#include "sdsock.h"

#include <linux/sched/signal.h>

/* smbdirect's own, the same for all listeners */
static rdma_cm_event_handler sdsock_next_handler;

/* smbdirect allocates for a connection as soon as a peer asks for one. */
static int sdsock_listener_event(struct rdma_cm_id *id, struct rdma_cm_event *event)
{
	bool request = event->event == RDMA_CM_EVENT_CONNECT_REQUEST && !event->status;
	rdma_cm_event_handler next = READ_ONCE(sdsock_next_handler);
	struct smbdirect_socket *sc = id->context;
	struct sdsock *ss = request ? sdsock_of_transport(sc) : NULL;
	int ret = -ENOBUFS;	/* the peer is refused */

	if (!ss)
		return next(id, event);
	mutex_lock(&ss->accepting);
	if (sdsock_charge_children(ss, sc, 1))
		ret = next(id, event);
	mutex_unlock(&ss->accepting);
	sock_put(sdsock_sk(ss));
	return ret;
}

static void sdsock_watch_requests(struct rdma_cm_id *id)
{
	rdma_lock_handler(id);
	WRITE_ONCE(sdsock_next_handler, id->event_handler);
	id->event_handler = sdsock_listener_event;
	rdma_unlock_handler(id);
}

int sdsock_listen(struct socket *sock, int backlog)
{
	struct sock *sk = sock->sk;
	struct sdsock *ss = to_sdsock(sk);
	int ret = 0;

	lock_sock(sk);
	if (sk->sk_state == TCP_LISTEN)
		goto out;
	ret = -EINVAL;
	if (sk->sk_state != TCP_CLOSE)
		goto out;
	ss->active = false;
	ret = sdsock_autobind(ss);
	if (!ret)
		ret = sdsock_open_transport(ss);
	if (!ret)
		ret = sdsock_apply_parameters(ss);
	if (ret)
		goto out;
	ret = smbdirect_socket_listen(ss->sc, max(backlog, 1));
	if (ret) {
		sdsock_drop_transport(ss);
		goto out;
	}
	sdsock_watch_requests(ss->sc->rdma.cm_id);
	/* those that came before; more are refused if there is no memory for these */
	sdsock_charge_children(ss, ss->sc, 0);
	ss->dead_listener = false;
	WRITE_ONCE(sk->sk_shutdown, 0);
	sdsock_set_state(sk, TCP_LISTEN);
out:
	release_sock(sk);
	return ret;
}

bool sdsock_acceptable(struct sdsock *ss)
{
	bool ready;

	spin_lock(&ss->lock);
	ready = ss->sc && !list_empty_careful(&ss->sc->listen.ready);
	spin_unlock(&ss->lock);
	return ready;
}

/* An accepted socket has what setsockopt() gave its listener. */
static void sdsock_inherit(struct sock *nsk, struct sock *sk)
{
	nsk->sk_family = sk->sk_family;
	nsk->sk_protocol = sk->sk_protocol;
	nsk->sk_destruct = sk->sk_destruct;
	nsk->sk_reuse = sk->sk_reuse;
	nsk->sk_reuseport = sk->sk_reuseport;
	nsk->sk_ipv6only = sk->sk_ipv6only;
	nsk->sk_bound_dev_if = sk->sk_bound_dev_if;
	nsk->sk_userlocks = sk->sk_userlocks;
	nsk->sk_sndbuf = sk->sk_sndbuf;
	nsk->sk_rcvbuf = sk->sk_rcvbuf;
	nsk->sk_rcvlowat = sk->sk_rcvlowat;
	nsk->sk_rcvtimeo = sk->sk_rcvtimeo;
	nsk->sk_sndtimeo = sk->sk_sndtimeo;
	nsk->sk_priority = sk->sk_priority;
	nsk->sk_mark = sk->sk_mark;
	nsk->sk_lingertime = sk->sk_lingertime;
	if (sock_flag(sk, SOCK_LINGER))
		sock_set_flag(nsk, SOCK_LINGER);
	if (sock_flag(sk, SOCK_KEEPOPEN))
		sock_set_flag(nsk, SOCK_KEEPOPEN);
	if (nsk->sk_family == AF_INET6)
		inet_sk(nsk)->pinet6 = &to_sdsock(nsk)->inet6;
	security_sk_clone(sk, nsk);
}

/* Nothing may fail once the peer has been told that it was accepted. */
static struct sock *sdsock_new_child(struct sock *sk, struct socket *newsock, bool kern)
{
	struct sdsock *ss = to_sdsock(sk);
	struct sock *nsk = sk_alloc(sock_net(sk), sk->sk_family, GFP_KERNEL, sk->sk_prot, kern);

	if (!nsk)
		return ERR_PTR(-ENOMEM);
	sock_init_data(newsock, nsk);
	sdsock_inherit(nsk, sk);
	to_sdsock(nsk)->wanted = ss->wanted;
	sdsock_share_account(to_sdsock(nsk), ss);
	nsk->sk_prot->init(nsk);	/* which cannot fail, with an account */
	sdsock_uncharge_child(ss);
	if (!sdsock_charge_buffers(to_sdsock(nsk))) {
		lock_sock(sk);
		if (ss->sc)	/* it is the listener's again */
			sdsock_charge_children(ss, ss->sc, 0);
		release_sock(sk);
		return ERR_PTR(-ENOBUFS);	/* released with newsock */
	}
	return nsk;
}

/* Returns 0, -EAGAIN, or another error. */
static int sdsock_take_child(struct sock *sk, struct sock *nsk, struct proto_accept_arg *arg)
{
	struct sdsock *child = to_sdsock(nsk);
	struct smbdirect_socket *sc;

	sock_owned_by_me(sk);
	if (sk->sk_state != TCP_LISTEN)
		return sock_error(sk) ?: -EINVAL;
	sdsock_size_children(to_sdsock(sk));
	/* without waiting: close() must be able to take the transport away */
	sc = smbdirect_socket_accept(to_sdsock(sk)->sc, 0, arg);
	if (!sc)
		return arg->err == -EAGAIN ? -EAGAIN : sdsock_errno(arg->err);
	sdsock_charge_children(to_sdsock(sk), to_sdsock(sk)->sc, 0);

	lock_sock_nested(nsk, SINGLE_DEPTH_NESTING);
	child->connect_done = true;
	sdsock_attach_transport(child, sc);
	/*
	 * smbdirect's timer began with the peer's request. Who accepts later than it
	 * runs would never notice that the peer is silent: so it begins again.
	 */
	mod_delayed_work(sc->workqueues.idle, &sc->idle.timer_work,
			 msecs_to_jiffies(sc->parameters.keepalive_interval_msec));
	sdsock_drop_reserve(child);
	sdsock_set_agreed(child);
	sdsock_set_state(nsk, TCP_ESTABLISHED);
	sdsock_set_addrs(child);
	trace_smbdirect_socket_accept(nsk, &child->agreed);
	if (!sdsock_connection_fits(child))
		sdsock_disconnect(child, sc);
	release_sock(nsk);
	return 0;
}

static long sdsock_wait_for_child(struct sock *sk, long timeo)
{
	DEFINE_WAIT(wait);

	prepare_to_wait_exclusive(sk_sleep(sk), &wait, TASK_INTERRUPTIBLE);
	if (!sdsock_acceptable(to_sdsock(sk)) && READ_ONCE(sk->sk_state) == TCP_LISTEN)
		timeo = schedule_timeout(timeo);
	finish_wait(sk_sleep(sk), &wait);
	return timeo;
}

int sdsock_accept(struct socket *sock, struct socket *newsock, struct proto_accept_arg *arg)
{
	struct sock *sk = sock->sk;
	struct sock *nsk = NULL;
	long timeo = sock_rcvtimeo(sk, arg->flags & O_NONBLOCK);
	int ret;

	for (;;) {
		if (sdsock_acceptable(to_sdsock(sk)) && !nsk) {
			/* released with newsock if it is not needed after all */
			nsk = sdsock_new_child(sk, newsock, arg->kern);
			if (IS_ERR(nsk))
				return PTR_ERR(nsk);
		}
		lock_sock(sk);
		if (nsk)
			ret = sdsock_take_child(sk, nsk, arg);
		else if (sk->sk_state != TCP_LISTEN)
			ret = sock_error(sk) ?: -EINVAL;
		else
			ret = -EAGAIN;
		release_sock(sk);
		if (ret != -EAGAIN || !timeo)
			return ret;
		if (signal_pending(current))
			return sock_intr_errno(timeo);
		timeo = sdsock_wait_for_child(sk, timeo);
	}
}
