// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Active opening. The state machine runs in smbdirect.ko; event_work moves the
 * socket to TCP_ESTABLISHED, or back to TCP_CLOSE with sk_err set.
 */
#include "sdsock.h"

static int sdsock_start_connect(struct sdsock *ss, struct sockaddr_storage *peer)
{
	struct sock *sk = sdsock_sk(ss);
	int ret;

	sock_owned_by_me(sk);
	ret = sock_error(sk);	/* of an attempt before, not asked for until now */
	if (ret)
		return ret;
	ret = sdsock_open_transport(ss);
	if (!ret)
		ret = sdsock_apply_parameters(ss);
	ss->active = true;
	if (!ret && !sdsock_charge_buffers(ss))
		ret = -ENOBUFS;
	if (ret)
		return ret;

	WRITE_ONCE(sk->sk_shutdown, 0);
	ss->connect_done = false;
	ss->dead_listener = false;
	ss->sc->rdma.cm_id->route.addr.dev_addr.bound_dev_if = sk->sk_bound_dev_if;
	/* before any event can ask for it */
	sdsock_set_state(sk, TCP_SYN_SENT);
	sdsock_set_peer_addr(sk, peer);
	trace_smbdirect_socket_connect(sk, 0, 0);
	ret = smbdirect_connect(ss->sc, (struct sockaddr *)peer);
	if (ret) {
		sdsock_set_state(sk, TCP_CLOSE);
		sdsock_drop_transport(ss);
		return sdsock_errno(ret);
	}
	return -EINPROGRESS;
}

int sdsock_connect(struct socket *sock, struct sockaddr_unsized *addr, int len, int flags)
{
	struct sock *sk = sock->sk;
	struct sdsock *ss = to_sdsock(sk);
	struct sockaddr_storage peer;
	long timeo;
	int ret;

	ret = sdsock_check_addr(sk, addr, len, &peer) ?:
	      sdsock_connect_hook(sk, addr, &len) ?:
	      sdsock_check_addr(sk, addr, len, &peer) ?:
	      sdsock_check_destination(&peer);
	if (ret)
		return ret;

	lock_sock(sk);
	timeo = sock_sndtimeo(sk, flags & O_NONBLOCK);
	switch (sk->sk_state) {
	case TCP_CLOSE:
		ret = sdsock_start_connect(ss, &peer);
		break;
	case TCP_SYN_SENT:
		ret = -EALREADY;
		break;
	case TCP_LISTEN:
		ret = -EISCONN;
		goto out;
	default:
		ret = ss->connect_done ? -EISCONN : 0;
		ss->connect_done = true;
		goto out;
	}
	if (sk->sk_state != TCP_SYN_SENT || !timeo)
		goto out;

	release_sock(sk);
	ret = wait_event_interruptible_timeout(*sk_sleep(sk),
					       READ_ONCE(sk->sk_state) != TCP_SYN_SENT, timeo);
	lock_sock(sk);
	switch (sk->sk_state) {
	case TCP_SYN_SENT:
		ret = ret < 0 ? sock_intr_errno(timeo) : -EINPROGRESS;
		break;
	case TCP_CLOSE:
		ret = sock_error(sk) ?: -ECONNABORTED;
		break;
	default:
		ret = 0;
		ss->connect_done = true;
	}
out:
	release_sock(sk);
	return ret;
}
