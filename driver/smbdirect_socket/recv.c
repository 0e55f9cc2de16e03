// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Receiving. Segments stay on smbdirect's reassembly list, where they hold
 * back the peer's credits, until somebody reads. They are copied twice: a
 * fault in userspace memory may last for ever, and the transport must be free
 * to go away meanwhile.
 */
#include "sdsock.h"

/* smbdirect_connection_put_recv_io(), which is not exported */
static void sdsock_put_segment(struct smbdirect_recv_io *segment)
{
	struct smbdirect_socket *sc = segment->socket;
	unsigned long flags;

	if (segment->sge.length) {
		ib_dma_unmap_single(sc->ib.dev, segment->sge.addr, segment->sge.length,
				    DMA_FROM_DEVICE);
		segment->sge.length = 0;
	}
	spin_lock_irqsave(&sc->recv_io.free.lock, flags);
	list_add_tail(&segment->list, &sc->recv_io.free.list);
	sc->statistics.put_receive_buffer++;
	spin_unlock_irqrestore(&sc->recv_io.free.lock, flags);
	queue_work(sc->workqueues.refill, &sc->recv_io.posted.refill_work);
}

static struct smbdirect_recv_io *sdsock_first_segment(struct smbdirect_socket *sc)
{
	struct smbdirect_recv_io *segment;
	unsigned long flags;

	spin_lock_irqsave(&sc->recv_io.reassembly.lock, flags);
	segment = list_first_entry_or_null(&sc->recv_io.reassembly.list,
					   struct smbdirect_recv_io, list);
	spin_unlock_irqrestore(&sc->recv_io.reassembly.lock, flags);
	return segment;
}

static void sdsock_drop_segment(struct smbdirect_socket *sc, struct smbdirect_recv_io *segment,
				u32 len)
{
	unsigned long flags;

	spin_lock_irqsave(&sc->recv_io.reassembly.lock, flags);
	list_del(&segment->list);
	sc->recv_io.reassembly.data_length -= len;
	sc->recv_io.reassembly.queue_length--;
	sc->statistics.dequeue_reassembly_queue++;
	spin_unlock_irqrestore(&sc->recv_io.reassembly.lock, flags);
	sdsock_put_segment(segment);
}

static struct sdsock_chunk *sdsock_new_chunk(struct sdsock *ss, u32 len)
{
	size_t size = struct_size_t(struct sdsock_chunk, data, len);
	struct sdsock_chunk *chunk;

	if (!sdsock_charge(ss, size))
		return NULL;
	chunk = kvmalloc(size, GFP_KERNEL);
	if (chunk)
		chunk->size = size;
	else
		sdsock_uncharge(ss, size);
	return chunk;
}

void sdsock_free_chunk(struct sdsock *ss, struct sdsock_chunk *chunk)
{
	sdsock_uncharge(ss, chunk->size);
	kvfree(chunk);
}

/*
 * Move one segment from the transport to the chunks. Returns 1, 0 if there is
 * none, or an error. smbdirect checked that the data lie within the message.
 */
static int sdsock_pull(struct sdsock *ss)
{
	const struct smbdirect_data_transfer *header;
	struct smbdirect_socket *sc = ss->sc;
	struct smbdirect_recv_io *segment;
	struct sdsock_chunk *chunk;
	u32 len, left;
	u8 *p;

	lockdep_assert_held(&ss->rx.lock);
	if (!sc || sc->recv_io.expected != SMBDIRECT_EXPECT_DATA_TRANSFER)
		return 0;
	segment = sdsock_first_segment(sc);
	if (!segment)
		return 0;
	header = (const struct smbdirect_data_transfer *)segment->packet;
	len = le32_to_cpu(header->data_length);
	left = le32_to_cpu(header->remaining_data_length);

	/* a peer whose segments do not add up to its frame would shift the stream */
	if (!segment->first_segment && len + left != ss->rx.frame_left) {
		sdsock_disconnect(ss, sc);
		return -EPROTO;
	}

	chunk = sdsock_new_chunk(ss, SDSOCK_PREFIX_LEN + len);
	if (!chunk)
		return -ENOBUFS;
	p = chunk->data;
	if (segment->first_segment) {
		put_unaligned_be32(len + left, p);
		p += SDSOCK_PREFIX_LEN;
	}
	memcpy(p, (const u8 *)header + le32_to_cpu(header->data_offset), len);
	chunk->offset = 0;
	chunk->len = p + len - chunk->data;
	sdsock_drop_segment(sc, segment, len);

	ss->rx.frame_left = left;
	list_add_tail(&chunk->list, &ss->rx.chunks);
	WRITE_ONCE(ss->rx.bytes, ss->rx.bytes + chunk->len);
	return 1;
}

/* Take over all that has arrived; rx.lock is held, the transport is settled. */
void sdsock_salvage(struct sdsock *ss)
{
	int ret;

	do {
		ret = sdsock_pull(ss);
	} while (ret > 0);
	if (ret < 0)
		ss->rx.frame_left = 1;	/* an end within a frame: ECONNRESET */
}

/*
 * Nobody will read from a closed socket. While it still sends, its peer needs
 * receive buffers in order to grant it credits, so free them.
 */
void sdsock_discard(struct sdsock *ss)
{
	const struct smbdirect_data_transfer *header;
	struct smbdirect_recv_io *segment;
	struct smbdirect_socket *sc = ss->sc;

	mutex_lock(&ss->rx.lock);
	if (sc->recv_io.expected == SMBDIRECT_EXPECT_DATA_TRANSFER) {
		while ((segment = sdsock_first_segment(sc))) {
			header = (const struct smbdirect_data_transfer *)segment->packet;
			sdsock_drop_segment(sc, segment, le32_to_cpu(header->data_length));
		}
	}
	mutex_unlock(&ss->rx.lock);
}

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

/* Is there more than @offset bytes, or data on the transport? */
bool sdsock_readable(struct sdsock *ss, size_t offset)
{
	bool readable;

	spin_lock(&ss->lock);
	readable = READ_ONCE(ss->rx.bytes) > offset ||
		   (ss->sc && READ_ONCE(ss->sc->recv_io.reassembly.data_length) > 0);
	spin_unlock(&ss->lock);
	return readable;
}

/* For SIOCINQ: bytes a read could return now */
int sdsock_inq(struct sdsock *ss)
{
	struct smbdirect_recv_io *segment;
	size_t bytes = 0;

	mutex_lock(&ss->rx.lock);
	if (ss->sc && ss->sc->recv_io.expected == SMBDIRECT_EXPECT_DATA_TRANSFER) {
		spin_lock_irq(&ss->sc->recv_io.reassembly.lock);
		list_for_each_entry(segment, &ss->sc->recv_io.reassembly.list, list) {
			const struct smbdirect_data_transfer *header =
				(const struct smbdirect_data_transfer *)segment->packet;

			bytes += le32_to_cpu(header->data_length);
			if (segment->first_segment)
				bytes += SDSOCK_PREFIX_LEN;
		}
		spin_unlock_irq(&ss->sc->recv_io.reassembly.lock);
	}
	bytes += ss->rx.bytes;
	mutex_unlock(&ss->rx.lock);
	return min_t(size_t, bytes, INT_MAX);
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
		mutex_lock(&ss->rx.reader);
		if (timeo < 0) {
			ret = sock_intr_errno(sk->sk_rcvtimeo);
			break;
		}
	}
	mutex_unlock(&ss->rx.reader);
	trace_smbdirect_socket_receive(sk, done, done ? 0 : ret);
	return done ?: ret;
}
