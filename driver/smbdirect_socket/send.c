// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Sending. SMB-Direct carries frames, a stream socket bytes: frames are put
 * together here from whatever pieces userspace writes, and handed to the
 * transport by a work item, as far as there are credits.
 */
#include "sdsock.h"

void sdsock_release_frame(struct sdsock *ss, struct sdsock_frame *frame)
{
	sdsock_uncharge(ss, struct_size(frame, data, frame->size));
	kvfree(frame);
}

static void sdsock_free_frame(struct sdsock *ss, struct sdsock_frame *frame)
{
	spin_lock(&ss->lock);
	list_del(&frame->list);
	ss->tx.bytes -= frame->size;
	ss->tx.frames--;
	spin_unlock(&ss->lock);
	sdsock_release_frame(ss, frame);
}

static u32 sdsock_left(const struct sdsock_frame *frame)
{
	return frame->size - SDSOCK_PREFIX_LEN - frame->sent;
}

/*
 * Credits that are kept for messages without data, which smbdirect sends by
 * itself: they grant credits, and ask for or give a sign of life. Data would
 * occupy the peer's last buffers until it reads, and neither side could say
 * anything until then. One is not enough: smbdirect may ask, and answer, before it
 * has a credit to grant, and two peers that both do so with their last are stuck
 * for ever. A peer that never grants more than a few is left to smbdirect's rule.
 */
static int sdsock_kept_credits(const struct sdsock *ss)
{
	return min(ss->tx.most_credits / 4, SDSOCK_KEPT_CREDITS);
}

/* May data go out without waiting? */
static bool sdsock_has_credit(struct sdsock *ss)
{
	int credits = atomic_read(&ss->sc->send_io.credits.count);

	ss->tx.most_credits = max(ss->tx.most_credits, credits);
	return credits > sdsock_kept_credits(ss);
}

/* How long data wait for credits until the peer is asked for some */
#define SDSOCK_ASK_DELAY (HZ / 10)

/*
 * One of the last credits buys a message that asks for an answer, which brings
 * what credits the peer has not told of: smbdirect keeps those to itself that
 * become free one by one. Once, for a peer that does not read has none.
 */
static void sdsock_ask_for_credits(struct sdsock *ss)
{
	struct smbdirect_socket *sc = ss->sc;

	if (ss->tx.asked || atomic_read(&sc->send_io.credits.count) < sdsock_kept_credits(ss) ||
	    !sdsock_kept_credits(ss) ||
	    READ_ONCE(sc->idle.keepalive) != SMBDIRECT_KEEPALIVE_NONE)
		return;
	ss->tx.asked = true;
	/* as smbdirect_connection_idle_timer_work() does */
	WRITE_ONCE(sc->idle.keepalive, SMBDIRECT_KEEPALIVE_PENDING);
	mod_delayed_work(sc->workqueues.idle, &sc->idle.timer_work,
			 msecs_to_jiffies(sc->parameters.keepalive_timeout_msec));
	queue_work(sc->workqueues.immediate, &sc->idle.immediate_work);
	flush_work(&sc->idle.immediate_work);
	/* a peer may be silent as long as if it had not been asked */
	if (READ_ONCE(sc->idle.keepalive) == SMBDIRECT_KEEPALIVE_SENT)
		mod_delayed_work(sc->workqueues.idle, &sc->idle.timer_work,
				 msecs_to_jiffies(sc->parameters.keepalive_interval_msec +
						  sc->parameters.keepalive_timeout_msec));
}

/* The transport is the other work's to touch. */
void sdsock_ask_work(struct work_struct *work)
{
	struct sdsock *ss = container_of(to_delayed_work(work), struct sdsock, tx.ask);

	WRITE_ONCE(ss->tx.waited, true);
	sdsock_tx_progress(ss);
}

/* Can the frame move on: has it credits, or, if all of it is out, has the peer got it? */
static bool sdsock_movable(struct sdsock *ss, const struct sdsock_frame *frame)
{
	return sdsock_left(frame) ? sdsock_has_credit(ss) :
				    !atomic_read(&ss->sc->send_io.pending.count);
}

/* Give the transport as much of a frame as there are credits for. */
static int sdsock_post(struct sdsock *ss, struct sdsock_frame *frame)
{
	struct kvec vec = {
		.iov_base = frame->data + SDSOCK_PREFIX_LEN + frame->sent,
		.iov_len = sdsock_left(frame),
	};
	struct smbdirect_send_batch_storage storage;
	struct smbdirect_send_batch *batch;
	struct iov_iter iter;
	int ret = 0, flushed;

	iov_iter_kvec(&iter, ITER_SOURCE, &vec, 1, vec.iov_len);
	batch = smbdirect_init_send_batch_storage(&storage, frame->invalidate, frame->token);
	while (sdsock_left(frame) && sdsock_has_credit(ss)) {
		ret = smbdirect_connection_send_single_iter(ss->sc, batch, &iter, 0,
							    iov_iter_count(&iter));
		if (ret < 0)
			break;
		frame->sent += ret;
		frame->invalidate = false;
		ss->tx.asked = false;
		ss->tx.waited = false;
		ss->tx.sent++;
	}
	flushed = smbdirect_connection_send_batch_flush(ss->sc, batch, true);
	return min(ret, 0) ?: flushed;
}

/*
 * Send a frame. Returns 1 once the peer has it, 0 if that takes time (then
 * sdsock_tx_progress() queues the work again), or an error. The memory of a
 * frame is the device's until all messages under way are done.
 */
static int sdsock_advance(struct sdsock *ss, struct sdsock_frame *frame)
{
	int ret;

	do {
		/* pairs with sdsock_tx_progress(): it sees stalled, or we the news */
		smp_store_mb(ss->tx.stalled, true);
		if (!sdsock_movable(ss, frame)) {
			if (sdsock_left(frame) && xchg(&ss->tx.waited, false))
				sdsock_ask_for_credits(ss);
			else if (sdsock_left(frame) && !ss->tx.asked)
				queue_delayed_work(sdsock_tx_wq, &ss->tx.ask, SDSOCK_ASK_DELAY);
			return 0;
		}
		WRITE_ONCE(ss->tx.stalled, false);
		if (!sdsock_left(frame))
			return 1;
		ret = sdsock_post(ss, frame);
	} while (!ret);
	return ret;
}

/* Credits came, or messages are done: called by wake functions, in any context. */
void sdsock_tx_progress(struct sdsock *ss)
{
	smp_mb();
	if (READ_ONCE(ss->tx.stalled))
		queue_work(sdsock_tx_wq, &ss->tx.work);
}

void sdsock_tx_work(struct work_struct *work)
{
	struct sdsock *ss = container_of(work, struct sdsock, tx.work);
	struct sock *sk = sdsock_sk(ss);
	struct sdsock_frame *frame;
	bool closed;
	int ret;

	for (;;) {
		spin_lock(&ss->lock);
		frame = list_first_entry_or_null(&ss->tx.queue, struct sdsock_frame, list);
		closed = ss->tx.closed;
		spin_unlock(&ss->lock);
		if (!frame)
			break;

		if (closed) {
			/* sdsock_stop_io() has seen to it that the device is done */
			if (!ss->tx.stopped)
				break;
			/*
			 * A peer may disconnect once it has the frame, before we see
			 * that it has. sdsock_connection_over() finds out which it was.
			 */
			if (sdsock_left(frame))
				ss->tx.lost = true;
			else
				ss->tx.unsure = true;
			ret = -ECONNRESET;
		} else {
			ret = sdsock_advance(ss, frame);
			if (ret < 0) {
				spin_lock(&ss->lock);
				ss->tx.closed = true;
				spin_unlock(&ss->lock);
				/* part of a frame may be out: nothing can follow it */
				sdsock_disconnect(ss, ss->sc);
				wake_up(&ss->tx.idle);
			}
			if (ret <= 0)
				break;
			ret = 0;
		}
		trace_smbdirect_socket_send(sk, frame->size, ret);
		sdsock_free_frame(ss, frame);
		sk->sk_write_space(sk);
		wake_up(&ss->tx.idle);
	}
}

static bool sdsock_queue_frame(struct sdsock *ss, struct sdsock_frame *frame)
{
	bool closed;

	spin_lock(&ss->lock);
	closed = ss->tx.closed;
	if (!closed) {
		list_add_tail(&frame->list, &ss->tx.queue);
		ss->tx.bytes += frame->size;
		ss->tx.frames++;
		queue_work(sdsock_tx_wq, &ss->tx.work);
	}
	spin_unlock(&ss->lock);
	return !closed;
}

/* What a frame costs besides its bytes: a round trip, a message, some memory */
#define SDSOCK_FRAME_COST 512

/* A frame that was begun is always taken to its end. */
bool sdsock_writable(struct sdsock *ss)
{
	size_t used = READ_ONCE(ss->tx.bytes) + READ_ONCE(ss->tx.frames) * SDSOCK_FRAME_COST;

	return READ_ONCE(ss->tx.frame) || used < READ_ONCE(sdsock_sk(ss)->sk_sndbuf);
}

static struct sdsock_frame *sdsock_new_frame(struct sdsock *ss, u32 size)
{
	size_t cost = struct_size_t(struct sdsock_frame, data, size);
	struct sdsock_frame *frame;

	if (!sdsock_charge(ss, cost))
		return NULL;
	frame = kvmalloc(cost, GFP_KERNEL);
	if (frame)
		frame->size = size;
	else
		sdsock_uncharge(ss, cost);
	return frame;
}

/* Complete the prefix; returns bytes taken from msg, or an error and takes none. */
static ssize_t sdsock_take_prefix(struct sdsock *ss, struct msghdr *msg)
{
	size_t had = ss->tx.prefix_len;
	u8 piece[SDSOCK_PREFIX_LEN];
	size_t n;
	u32 size;

	/* hardened usercopy forbids copying into the sock slab */
	n = copy_from_iter(piece, SDSOCK_PREFIX_LEN - had, &msg->msg_iter);
	if (!n)
		return -EFAULT;
	memcpy(ss->tx.prefix + had, piece, n);
	if (had + n < SDSOCK_PREFIX_LEN) {
		ss->tx.prefix_len = had + n;
		return n;
	}

	size = get_unaligned_be32(ss->tx.prefix);
	if (size > ss->max_frame || (!size && ss->tx.invalidate)) {
		iov_iter_revert(&msg->msg_iter, n);
		return size ? -EMSGSIZE : -EINVAL;
	}
	if (size) {
		struct sdsock_frame *frame;

		frame = sdsock_new_frame(ss, SDSOCK_PREFIX_LEN + size);
		if (!frame) {
			iov_iter_revert(&msg->msg_iter, n);
			return -ENOBUFS;
		}
		memcpy(frame->data, ss->tx.prefix, SDSOCK_PREFIX_LEN);
		frame->filled = SDSOCK_PREFIX_LEN;
		frame->sent = 0;
		frame->invalidate = ss->tx.invalidate;
		frame->token = ss->tx.token;
		WRITE_ONCE(ss->tx.frame, frame);
	}
	ss->tx.invalidate = false;
	/* the wire has no empty message that its receiver would be told of */
	ss->tx.prefix_len = 0;
	return n;
}

static ssize_t sdsock_take_payload(struct sdsock *ss, struct msghdr *msg)
{
	struct sdsock_frame *frame = ss->tx.frame;
	size_t n = copy_from_iter(frame->data + frame->filled, frame->size - frame->filled,
				  &msg->msg_iter);

	if (!n)
		return -EFAULT;
	frame->filled += n;
	if (frame->filled == frame->size) {
		WRITE_ONCE(ss->tx.frame, NULL);
		if (!sdsock_queue_frame(ss, frame)) {
			sdsock_release_frame(ss, frame);
			return -EPIPE;
		}
	}
	return n;
}

/* May bytes be taken now? -EAGAIN asks to wait. */
static int sdsock_may_send(struct sock *sk)
{
	struct sdsock *ss = to_sdsock(sk);

	if (READ_ONCE(sk->sk_err) || READ_ONCE(sk->sk_shutdown) & SEND_SHUTDOWN)
		return -EPIPE;
	/* pairs with sdsock_set_state(): what was agreed is there */
	switch (smp_load_acquire(&sk->sk_state)) {
	case TCP_ESTABLISHED:
		/* closed: event_work is about to say why */
		return sdsock_writable(ss) && !READ_ONCE(ss->tx.closed) ? 0 : -EAGAIN;
	case TCP_SYN_SENT:
		return -EAGAIN;
	default:
		return -EPIPE;
	}
}

/* The peer's registration that a control message names; 0, or 1 if there is none */
static int sdsock_find_token(struct msghdr *msg, u32 *token)
{
	const struct smbdirect_remote_invalidate *request;
	struct cmsghdr *cmsg;
	int ret = 1;

	for_each_cmsghdr(cmsg, msg) {
		if (!CMSG_OK(msg, cmsg))
			return -EINVAL;
		if (cmsg->cmsg_level != SOL_SMBDIRECT)
			continue;
		if ((u32)cmsg->cmsg_type != SMBDIRECT_REMOTE_INVALIDATE || !ret ||
		    cmsg->cmsg_len != CMSG_LEN(sizeof(*request)))
			return -EINVAL;
		request = CMSG_DATA(cmsg);
		*token = request->remote_token;
		ret = 0;
	}
	return ret;
}

int sdsock_sendmsg(struct socket *sock, struct msghdr *msg, size_t len)
{
	struct sock *sk = sock->sk;
	struct sdsock *ss = to_sdsock(sk);
	long timeo = sock_sndtimeo(sk, msg->msg_flags & MSG_DONTWAIT);
	bool invalidate;
	size_t done = 0;
	ssize_t ret;
	u32 token;

	if (msg->msg_flags & MSG_FASTOPEN)
		return -EOPNOTSUPP;
	if (msg->msg_flags & MSG_OOB) {
		ret = sdsock_submit(sk, msg, len);
		return ret == -EPIPE ? sk_stream_error(sk, msg->msg_flags, ret) : ret;
	}
	ret = sdsock_find_token(msg, &token);
	if (ret < 0)
		return ret;
	invalidate = !ret;

	ret = mutex_lock_interruptible(&ss->tx.writer);
	if (ret)
		return sock_intr_errno(timeo);
	do {
		ret = sdsock_may_send(sk);
		if (ret == -EAGAIN && timeo) {
			long left;

			/* others may write meanwhile, as they may with TCP */
			mutex_unlock(&ss->tx.writer);
			left = wait_event_interruptible_timeout(*sk_sleep(sk),
								sdsock_may_send(sk) != -EAGAIN,
								timeo);
			/* another writer may have it for as long as a fault takes */
			if (left < 0 || mutex_lock_interruptible(&ss->tx.writer))
				return done ?: sock_intr_errno(timeo);
			timeo = left;
			continue;
		}
		if (ret || !msg_data_left(msg))
			break;
		if (invalidate) {
			/* goes with a frame that begins in this call */
			ret = -EINVAL;
			if (ss->tx.frame || ss->tx.prefix_len)
				break;
			ss->tx.invalidate = true;
			ss->tx.token = token;
			invalidate = false;
		}
		ret = ss->tx.frame ? sdsock_take_payload(ss, msg) : sdsock_take_prefix(ss, msg);
		if (ret < 0) {
			if (!ss->tx.prefix_len)
				ss->tx.invalidate = false;
			break;
		}
		done += ret;
		ret = 0;
	} while (msg_data_left(msg));
	mutex_unlock(&ss->tx.writer);

	if (done)
		return done;
	return ret == -EPIPE ? sk_stream_error(sk, msg->msg_flags, ret) : ret;
}
