// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Active opening. The state machine runs in smbdirect.ko; event_work moves the
 * socket to TCP_ESTABLISHED, or back to TCP_CLOSE with sk_err set.
 */
#include "sdsock.h"

#include "../common/smb2status.h"

/* The transport is negotiated; lock_sock() is held. */
void sdsock_connected(struct sdsock *ss)
{
	struct smbdirect_socket *sc = ss->sc;

	sdsock_drop_reserve(ss);
	sdsock_note_parameters(ss);
	sdsock_note_addresses(ss);
	sdsock_set_state(sdsock_sk(ss), TCP_ESTABLISHED);
	trace_smbdirect_socket_connected(sdsock_sk(ss), &ss->agreed);
	/*
	 * The accepting side has no credits until our first message. Send an
	 * empty one, or a server that speaks first waits for our keepalive.
	 */
	queue_work(sc->workqueues.immediate, &sc->idle.immediate_work);
}

/*
 * Did a transport that failed while connecting get a good answer before? The
 * disconnect of a peer that closes at once cancels the work that reads it.
 * Only after sdsock_settle().
 */
bool sdsock_negotiated(struct smbdirect_socket *sc)
{
	const struct smbdirect_negotiate_resp *answer;
	const struct smbdirect_recv_io *recv_io;

	if (!sc->recv_io.mem.pool)
		return false;
	if (sc->recv_io.expected == SMBDIRECT_EXPECT_DATA_TRANSFER)
		return true;
	if (sc->recv_io.expected != SMBDIRECT_EXPECT_NEGOTIATE_REP)
		return false;
	recv_io = list_first_entry_or_null(&sc->recv_io.reassembly.list,
					   struct smbdirect_recv_io, list);
	if (!recv_io)
		return false;
	answer = (const struct smbdirect_negotiate_resp *)recv_io->packet;
	return le16_to_cpu(answer->negotiated_version) == SMBDIRECT_V1 &&
	       answer->status == STATUS_SUCCESS;
}

static int sdsock_start_connect(struct sdsock *ss, struct sockaddr_storage *peer)
{
	struct sock *sk = sdsock_sk(ss);
	int ret;

	ret = sock_error(sk);	/* of an attempt before, not asked for until now */
	if (ret)
		return ret;
	ret = sdsock_open(ss);
	if (!ret)
		ret = sdsock_apply_parameters(ss);
	if (!ret && !sdsock_charge_buffers(ss))
		ret = -ENOBUFS;
	if (ret)
		return ret;

	WRITE_ONCE(sk->sk_shutdown, 0);
	ss->active = true;
	ss->connect_done = false;
	ss->dead_listener = false;
	ss->sc->rdma.cm_id->route.addr.dev_addr.bound_dev_if = sk->sk_bound_dev_if;
	/* before any event can ask for it */
	sdsock_set_state(sk, TCP_SYN_SENT);
	sdsock_note_peer(sk, peer);
	trace_smbdirect_socket_connect(sk, 0, 0);
	ret = smbdirect_connect(ss->sc, (struct sockaddr *)peer);
	if (ret) {
		sdsock_set_state(sk, TCP_CLOSE);
		sdsock_detach(ss);
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

	ret = sdsock_check_addr(sk, addr, len, &peer);
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
