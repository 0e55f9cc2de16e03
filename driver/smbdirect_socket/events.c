// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * States of a connection: what becomes of a socket when its transport is
 * negotiated, or fails, or ends.
 */
#include "sdsock.h"

#include "../common/smb2status.h"

/* Errors as a TCP program knows them; connect.c and recv.c report them. */
int sdsock_errno(int error)
{
	switch (error) {
	case -ECONNABORTED:
	case -ESHUTDOWN:
	case -ENOTCONN:		/* siw, of a send to a peer that has just gone */
		return -ECONNRESET;
	case -ENODEV:	/* no RDMA device in this direction */
		return -ENETUNREACH;
	default:
		return error;
	}
}

/* The transport is negotiated. */
static void sdsock_connected(struct sdsock *ss)
{
	struct smbdirect_socket *sc = ss->sc;

	sock_owned_by_me(sdsock_sk(ss));
	if (!sdsock_connection_fits(ss)) {
		sdsock_disconnect(ss, sc);
		return;
	}
	sdsock_drop_reserve(ss);
	sdsock_set_agreed(ss);
	sdsock_set_addrs(ss);
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
 * Only after sdsock_drain().
 */
static bool sdsock_negotiated(struct smbdirect_socket *sc)
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

static void sdsock_fail(struct sock *sk, int error, int state)
{
	sock_owned_by_me(sk);
	if (error) {
		WRITE_ONCE(sk->sk_err, -error);
		trace_smbdirect_socket_error(sk, 0, error);
	}
	/* pairs with the reader's smp_load_acquire(): salvaged data comes first */
	smp_store_release(&sk->sk_shutdown, SHUTDOWN_MASK);
	sdsock_set_state(sk, state);
}

/* Is this how a transport ends whose peer, or whose owner, just closed it? */
static bool sdsock_is_clean_close(struct smbdirect_socket *sc, int error)
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
	bool clean;

	sock_owned_by_me(sk);
	sdsock_stop_io(ss);
	clean = sdsock_is_clean_close(sc, error);
	if (ss->tx.unsure && atomic_read(&sc->send_io.pending.count))
		ss->tx.lost = true;
	if (sk->sk_state == TCP_SYN_SENT) {
		if (!sdsock_negotiated(sc)) {
			if (error == -EINVAL)	/* of a device that has too little of something */
				error = -EPROTONOSUPPORT;
			/* the next attempt may need the address that it holds */
			sdsock_drop_transport(ss);
			sdsock_fail(sk, sdsock_errno(error), TCP_CLOSE);
			return NULL;
		}
		/* accepted, and closed before we could look: a connection at its end */
		sdsock_connected(ss);
	}
	sdsock_detach_transport(ss);
	if (clean)
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
		sdsock_drop_transport(ss);
		break;
	default:
		/* only bound: the next call that needs a transport makes one */
		sdsock_drop_transport(ss);
		goto out;
	}
	sk->sk_state_change(sk);
	if (sk->sk_err)
		sk_error_report(sk);
out:
	release_sock(sk);
	if (over)
		sdsock_release_transport(ss, over);
}
