// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Receiving. Segments stay on smbdirect's reassembly list until somebody reads.
 * They are copied twice: a fault in userspace memory may last for ever, and the
 * transport must be free to go away meanwhile.
 */
#include "sdsock.h"

/* Have more than @offset bytes in chunks if they are there; bounded by SO_RCVBUF */
static int sdsock_fill(struct sdsock *ss, size_t offset)
{
	int ret = 0;

	mutex_lock(&ss->rx.lock);
	while (ss->rx.bytes <= offset && (!ss->rx.bytes || ss->rx.bytes <
					  READ_ONCE(sdsock_sk(ss)->sk_rcvbuf))) {
		ret = sdsock_pull(ss);
		if (ret <= 0)
			break;
	}
	if (ret == -EPROTO)
		sdsock_disconnect(ss, ss->sc);
	if (ss->rx.bytes > offset)
		ret = 1;
	mutex_unlock(&ss->rx.lock);
	return ret;
}

static struct sdsock_chunk *sdsock_chunk_at(struct sdsock *ss, size_t *offset)
{
	struct sdsock_chunk *chunk;

	list_for_each_entry(chunk, &ss->rx.chunks, list) {
		if (*offset < chunk->len)
			return chunk;
		*offset -= chunk->len;
	}
	return NULL;
}

/*
 * Copy from one chunk. The reader alone removes chunks, so the one found stays
 * although rx.lock is not held during the copy.
 */
static ssize_t sdsock_copy(struct sdsock *ss, struct msghdr *msg, size_t want, size_t offset,
			   int flags)
{
	struct sdsock_chunk *chunk;
	size_t n;

	mutex_lock(&ss->rx.lock);
	chunk = sdsock_chunk_at(ss, &offset);
	mutex_unlock(&ss->rx.lock);
	if (WARN_ON_ONCE(!chunk))
		return -EIO;

	n = min_t(size_t, want, chunk->len - offset);
	if (!(flags & MSG_TRUNC))
		n = copy_to_iter(chunk->data + chunk->offset + offset, n, &msg->msg_iter);
	if (!n)
		return -EFAULT;
	if (flags & MSG_PEEK)
		return n;

	mutex_lock(&ss->rx.lock);
	chunk->offset += n;
	chunk->len -= n;
	WRITE_ONCE(ss->rx.bytes, ss->rx.bytes - n);
	if (!chunk->len)
		list_del(&chunk->list);
	else
		chunk = NULL;
	mutex_unlock(&ss->rx.lock);
	if (chunk)
		sdsock_free_chunk(ss, chunk);
	return n;
}

/* -EAGAIN: nothing now; 0 or another error: nothing any more */
static int sdsock_why_empty(struct sock *sk, u8 shutdown)
{
	/* no look at sk_err before: it must not overtake data */
	if (shutdown & RCV_SHUTDOWN)
		return sock_error(sk);
	switch (READ_ONCE(sk->sk_state)) {
	case TCP_CLOSE:
	case TCP_LISTEN:
		return -ENOTCONN;
	default:
		return -EAGAIN;
	}
}

static bool sdsock_recv_event(struct sock *sk, size_t offset)
{
	return sdsock_readable(to_sdsock(sk), offset) || READ_ONCE(sk->sk_err) ||
	       READ_ONCE(sk->sk_shutdown) & RCV_SHUTDOWN;
}

int sdsock_recvmsg(struct socket *sock, struct msghdr *msg, size_t len, int flags)
{
	struct sock *sk = sock->sk;
	struct sdsock *ss = to_sdsock(sk);
	long timeo = sock_rcvtimeo(sk, flags & MSG_DONTWAIT);
	size_t target = sock_rcvlowat(sk, flags & MSG_WAITALL, len);
	size_t done = 0;
	int ret;

	if (flags & MSG_ERRQUEUE)
		return -EAGAIN;
	if (flags & MSG_OOB)
		return sdsock_collect(sk, msg, flags);

	if (mutex_lock_interruptible(&ss->rx.reader))
		return sock_intr_errno(timeo);
	ret = 0;
	while (done < len) {
		size_t offset = flags & MSG_PEEK ? done : 0;
		/* before looking for data: what is salvaged precedes the end */
		u8 shutdown = smp_load_acquire(&sk->sk_shutdown);

		ret = sdsock_fill(ss, offset);
		if (ret > 0) {
			ret = sdsock_copy(ss, msg, len - done, offset, flags);
			if (ret <= 0)
				break;
			done += ret;
			continue;
		}
		if (ret < 0 || done >= target)
			break;
		/* a full queue shows a peeking reader no more, however long it waits */
		if (offset && ss->rx.bytes >= READ_ONCE(sk->sk_rcvbuf))
			break;
		ret = sdsock_why_empty(sk, shutdown);
		if (ret != -EAGAIN || !timeo)
			break;

		mutex_unlock(&ss->rx.reader);
		timeo = wait_event_interruptible_timeout(*sk_sleep(sk),
							 sdsock_recv_event(sk, offset), timeo);
		/* another reader may have it for as long as a fault takes */
		if (timeo < 0 || mutex_lock_interruptible(&ss->rx.reader)) {
			ret = sock_intr_errno(sk->sk_rcvtimeo);
			goto unlocked;
		}
	}
	mutex_unlock(&ss->rx.reader);
unlocked:
	trace_smbdirect_socket_receive(sk, done, done ? 0 : ret);
	return done ?: ret;
}
