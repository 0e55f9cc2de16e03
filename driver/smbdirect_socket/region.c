// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Memory that the peer may read or write by RDMA: pinned, counted as locked by
 * the process that registered it, and known to the device until it is taken
 * back or the connection ends.
 */
#include "sdsock.h"

#include <linux/mm.h>
#include <linux/sched/mm.h>

static void sdsock_unpin(struct sdsock_region *region)
{
	unpin_user_pages_dirty_lock(region->pages, region->num_pinned, region->writable);
	account_locked_vm(region->mm, region->num_pages, false);
	mmdrop(region->mm);
	kvfree(region->pages);
	kfree(region);
}

/*
 * Pin what lies at an address of this process. Takes as long as userspace likes
 * (a fault may be handled there), so no lock is held.
 */
static struct sdsock_region *sdsock_pin(unsigned long start, size_t len, u32 num_pages,
					bool writable)
{
	unsigned int flags = FOLL_LONGTERM | (writable ? FOLL_WRITE : 0);
	struct sdsock_region *region;
	int ret;

	region = kzalloc(sizeof(*region), GFP_KERNEL_ACCOUNT);
	if (!region)
		return ERR_PTR(-ENOBUFS);
	region->pages = kvmalloc_array(num_pages, sizeof(*region->pages), GFP_KERNEL_ACCOUNT);
	if (!region->pages) {
		kfree(region);
		return ERR_PTR(-ENOBUFS);
	}
	ret = account_locked_vm(current->mm, num_pages, true);
	if (ret) {
		kvfree(region->pages);
		kfree(region);
		return ERR_PTR(ret);
	}
	mmgrab(current->mm);
	region->mm = current->mm;
	region->num_pages = num_pages;
	region->writable = writable;

	while (region->num_pinned < num_pages) {
		ret = pin_user_pages_fast((start & PAGE_MASK) + region->num_pinned * PAGE_SIZE,
					  num_pages - region->num_pinned, flags,
					  region->pages + region->num_pinned);
		if (ret <= 0) {
			/* nothing was written to it */
			region->writable = false;
			sdsock_unpin(region);
			return ERR_PTR(ret == -ENOMEM || ret == -EINTR ? ret : -EFAULT);
		}
		region->num_pinned += ret;
	}
	return region;
}

static struct bio_vec *sdsock_vectors(const struct sdsock_region *region, unsigned long start,
				      size_t len)
{
	struct bio_vec *vectors;
	size_t offset = offset_in_page(start);

	vectors = kvmalloc_array(region->num_pages, sizeof(*vectors), GFP_KERNEL_ACCOUNT);
	if (!vectors)
		return NULL;
	for (u32 i = 0; i < region->num_pages; i++) {
		size_t n = min_t(size_t, len, PAGE_SIZE - offset);

		bvec_set_page(&vectors[i], region->pages[i], n, offset);
		len -= n;
		offset = 0;
	}
	return vectors;
}

/* Tell the device; rdma.lock keeps the transport, and others from its registrations. */
static int sdsock_map(struct sdsock *ss, struct sdsock_region *region, struct iov_iter *iter,
		      struct smbdirect_descriptor_v1 *descriptor)
{
	struct smbdirect_buffer_descriptor_v1 v1;
	struct smbdirect_mr_io *mr;
	struct smbdirect_socket *sc;
	bool closed;

	lockdep_assert_held(&ss->rdma.lock);
	spin_lock(&ss->lock);
	closed = ss->tx.closed;
	spin_unlock(&ss->lock);
	if (closed)
		return -ENOTCONN;
	sc = ss->sc;
	/* smbdirect would wait for one, and warn about more pages than it has entries for */
	if (!atomic_read(&sc->mr_io.ready.count))
		return -ENOBUFS;
	if (region->num_pages > sc->parameters.max_frmr_depth)
		return -EMSGSIZE;
	/*
	 * Always invalidated here when it is taken back: smbdirect does not pass
	 * on whether the peer did, and a peer's word is not enough to free memory.
	 */
	mr = smbdirect_connection_register_mr_io(sc, iter, region->writable, true);
	if (!mr)
		return -ENOTCONN;

	smbdirect_mr_io_fill_buffer_descriptor(mr, &v1);
	region->mr = mr;
	region->token = le32_to_cpu(v1.token);
	descriptor->offset = v1.offset;
	descriptor->token = v1.token;
	descriptor->length = v1.length;
	list_add_tail(&region->list, &ss->rdma.regions);
	WRITE_ONCE(ss->rdma.num_regions, ss->rdma.num_regions + 1);
	return 0;
}

int sdsock_register_region(struct sdsock *ss, struct msghdr *msg, bool writable,
			   struct smbdirect_descriptor_v1 *descriptor)
{
	size_t len = msg_data_left(msg);
	struct sdsock_region *region;
	struct bio_vec *vectors;
	struct iov_iter iter;
	unsigned long start;
	u64 num_pages;
	int ret;

	/* one piece of a process's memory: a registration has no holes */
	if (!iter_is_ubuf(&msg->msg_iter) || !len || !current->mm)
		return -EINVAL;
	start = untagged_addr((unsigned long)msg->msg_iter.ubuf + msg->msg_iter.iov_offset);
	num_pages = DIV_ROUND_UP((u64)offset_in_page(start) + len, PAGE_SIZE);
	if (num_pages > ss->agreed.max_read_write_size / PAGE_SIZE)
		return -EMSGSIZE;

	region = sdsock_pin(start, len, num_pages, writable);
	if (IS_ERR(region))
		return PTR_ERR(region);
	vectors = sdsock_vectors(region, start, len);
	if (!vectors) {
		region->writable = false;
		sdsock_unpin(region);
		return -ENOBUFS;
	}
	iov_iter_bvec(&iter, writable ? ITER_DEST : ITER_SOURCE, vectors, num_pages, len);

	mutex_lock(&ss->rdma.lock);
	ret = sdsock_map(ss, region, &iter, descriptor);
	mutex_unlock(&ss->rdma.lock);
	kvfree(vectors);
	if (ret)
		sdsock_unpin(region);
	return ret;
}

/* Take a registration off the list, so that only the caller can end it. */
struct sdsock_region *sdsock_take_region(struct sdsock *ss, u32 token)
{
	struct sdsock_region *region;

	mutex_lock(&ss->rdma.lock);
	list_for_each_entry(region, &ss->rdma.regions, list) {
		if (region->token == token) {
			list_del(&region->list);
			WRITE_ONCE(ss->rdma.num_regions, ss->rdma.num_regions - 1);
			mutex_unlock(&ss->rdma.lock);
			return region;
		}
	}
	mutex_unlock(&ss->rdma.lock);
	return NULL;
}

static void sdsock_invalidated(struct ib_cq *cq, struct ib_wc *wc)
{
	struct sdsock_region *region = container_of(wc->wr_cqe, struct sdsock_region, cqe);

	region->invalid = wc->status == IB_WC_SUCCESS;
	complete(&region->done);
}

/*
 * smbdirect's own invalidation takes the completion of a registration that it
 * has not yet seen for its own: the memory would be let go too early, and the
 * registration lost. Ours comes after that one.
 */
static void sdsock_invalidate(struct sdsock *ss, struct sdsock_region *region)
{
	struct ib_send_wr wr = {
		.wr_cqe = &region->cqe,
		.opcode = IB_WR_LOCAL_INV,
		.send_flags = IB_SEND_SIGNALED,
		.ex.invalidate_rkey = region->token,
	};

	region->cqe.done = sdsock_invalidated;
	init_completion(&region->done);
	if (!ib_post_send(ss->sc->ib.qp, &wr, NULL))
		wait_for_completion(&region->done);
	if (region->invalid)
		region->mr->need_invalidate = false;
	else
		sdsock_disconnect(ss, ss->sc);	/* then the registration is destroyed */
}

/* The device is done with the memory when this returns; waits for it if connected. */
void sdsock_free_region(struct sdsock *ss, struct sdsock_region *region)
{
	if (ss->sc && ss->sc->status == SMBDIRECT_SOCKET_CONNECTED)
		sdsock_invalidate(ss, region);
	smbdirect_connection_deregister_mr_io(region->mr);
	sdsock_unpin(region);
}

/* Before the transport goes, or when nobody can ask for it any more. */
void sdsock_free_regions(struct sdsock *ss)
{
	struct sdsock_region *region, *next;

	mutex_lock(&ss->rdma.lock);
	list_for_each_entry_safe(region, next, &ss->rdma.regions, list) {
		list_del(&region->list);
		sdsock_free_region(ss, region);
	}
	WRITE_ONCE(ss->rdma.num_regions, 0);
	mutex_unlock(&ss->rdma.lock);
}
