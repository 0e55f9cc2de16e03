// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What has arrived: segments on smbdirect's reassembly list, where they hold
 * back the peer's credits, and chunks of the byte stream made of them.
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
	/*
	 * smbdirect tells the peer of new credits by itself unless they come one by
	 * one. A peer that is down to its last would wait for the next keepalive.
	 */
	if (atomic_read(&sc->recv_io.credits.count) <= SDSOCK_KEPT_CREDITS &&
	    atomic_read(&sc->recv_io.credits.available) > 0)
		queue_work(sc->workqueues.immediate, &sc->idle.immediate_work);
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
 * none, or an error; after -EPROTO the connection has to end. smbdirect checked
 * that the data lie within the message.
 */
int sdsock_pull(struct sdsock *ss)
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
	if (!segment->first_segment && len + left != ss->rx.frame_left)
		return -EPROTO;

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

/* Has data taken all buffers? Then the peer cannot say anything until we read. */
bool sdsock_peer_is_mute(const struct smbdirect_socket *sc)
{
	return !atomic_read(&sc->recv_io.posted.count);
}

/*
 * A peer that spends its last credit on data cannot answer when it is asked for
 * a sign of life. So that a reader may pause, make room for one message from
 * time to time: after we have asked, and before we give up.
 */
unsigned long sdsock_relief_delay(const struct smbdirect_socket *sc)
{
	const struct smbdirect_socket_parameters *sp = &sc->parameters;

	return msecs_to_jiffies(sp->keepalive_interval_msec + sp->keepalive_timeout_msec / 2);
}

void sdsock_relief_work(struct work_struct *work)
{
	struct sdsock *ss = container_of(to_delayed_work(work), struct sdsock, rx.relief);
	int ret = 0;

	mutex_lock(&ss->rx.lock);
	if (ss->sc && sdsock_peer_is_mute(ss->sc))
		ret = sdsock_pull(ss);
	if (ret == -EPROTO)
		sdsock_disconnect(ss, ss->sc);
	else if (ret < 0)	/* no memory: again, as long as there is time */
		queue_delayed_work(sdsock_event_wq, &ss->rx.relief, HZ / 10);
	mutex_unlock(&ss->rx.lock);
}

/* Take over all that has arrived; the transport has been drained. */
void sdsock_salvage(struct sdsock *ss)
{
	int ret;

	lockdep_assert_held(&ss->rx.lock);
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
