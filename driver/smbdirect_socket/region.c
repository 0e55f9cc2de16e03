// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Memory that the peer may read or write by RDMA: pinned, counted as locked by
 * the user who registered it, and known to the device until it is taken back or
 * the connection ends.
 */
#include "sdsock.h"

#include <linux/mm.h>
#include <linux/sched/user.h>

/* What a device has begun it completes in microseconds; else the connection ends. */
#define SDSOCK_REGISTRATION_TIMEOUT (5 * HZ)

static void sdsock_unpin(struct sdsock_region *region)
{
	unpin_user_pages_dirty_lock(region->pages, region->num_pinned, region->writable);
	mm_unaccount_pinned_pages(&region->locked);
	kvfree(region->pages);
	kfree(region);
}

/*
 * Count pages as locked by a user, of whatever process: a registration lasts as
 * long as its socket, which may outlive the process. The function counts two
 * pages more than it is given.
 */
static int sdsock_count_locked(struct sdsock_region *region, u32 num_pages)
{
	size_t size = num_pages > 2 ? (size_t)(num_pages - 2) << PAGE_SHIFT : 1;

	return mm_account_pinned_pages(&region->locked, size) ? -ENOMEM : 0;
}

/*
 * Pin what lies at an address of this process. Takes as long as userspace likes
 * (a fault may be handled there), so no lock is held.
 */
static struct sdsock_region *sdsock_pin(unsigned long start, u32 num_pages, bool writable)
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
	ret = sdsock_count_locked(region, num_pages);
	if (ret) {
		kvfree(region->pages);
		kfree(region);
		return ERR_PTR(ret);
	}
	region->num_pages = num_pages;
	region->writable = writable;
	init_completion(&region->registered);

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

/* Take one of smbdirect's registrations, as its own code would. */
static struct smbdirect_mr_io *sdsock_get_mr(struct smbdirect_socket *sc)
{
	struct smbdirect_mr_io *mr, *found = NULL;

	spin_lock_irq(&sc->mr_io.all.lock);
	list_for_each_entry(mr, &sc->mr_io.all.list, list) {
		if (mr->state == SMBDIRECT_MR_READY) {
			mr->state = SMBDIRECT_MR_REGISTERED;
			kref_get(&mr->kref);
			atomic_dec(&sc->mr_io.ready.count);
			atomic_inc(&sc->mr_io.used.count);
			found = mr;
			break;
		}
	}
	spin_unlock_irq(&sc->mr_io.all.lock);
	return found;
}

static int sdsock_map_pages(struct smbdirect_socket *sc, struct smbdirect_mr_io *mr,
			    const struct sdsock_region *region, unsigned long start, size_t len)
{
	size_t offset = offset_in_page(start);
	struct scatterlist *sg = mr->sgt.sgl;
	int mapped;

	lockdep_assert_held(&mr->mutex);
	sg_init_table(sg, region->num_pages);
	for (u32 i = 0; i < region->num_pages; i++, sg = sg_next(sg)) {
		size_t n = min_t(size_t, len, PAGE_SIZE - offset);

		sg_set_page(sg, region->pages[i], n, offset);
		len -= n;
		offset = 0;
	}
	mr->dir = region->writable ? DMA_FROM_DEVICE : DMA_TO_DEVICE;
	mapped = ib_dma_map_sg(sc->ib.dev, mr->sgt.sgl, region->num_pages, mr->dir);
	if (!mapped)
		return -EIO;
	mr->sgt.orig_nents = region->num_pages;
	mr->sgt.nents = region->num_pages;	/* which is what gets unmapped */
	if (ib_map_mr_sg(mr->mr, mr->sgt.sgl, mapped, NULL, PAGE_SIZE) != mapped)
		return -EIO;
	/*
	 * Descriptors begin here, not at the device's address of the memory, which
	 * would be one of the kernel's with a device that is none.
	 */
	mr->mr->iova &= ~PAGE_MASK;
	return 0;
}

/* If it has failed, so has the queue pair, and smbdirect ends the connection. */
static void sdsock_registered(struct ib_cq *cq, struct ib_wc *wc)
{
	complete(&container_of(wc->wr_cqe, struct sdsock_region, cqe)->registered);
}

static int sdsock_post_registration(struct smbdirect_socket *sc, struct smbdirect_mr_io *mr,
				    struct sdsock_region *region)
{
	struct ib_reg_wr *request = &mr->wr;

	lockdep_assert_held(&mr->mutex);
	ib_update_fast_reg_key(mr->mr, ib_inc_rkey(mr->mr->rkey));
	region->cqe.done = sdsock_registered;
	*request = (struct ib_reg_wr) {
		.wr.opcode = IB_WR_REG_MR,
		.wr.wr_cqe = &region->cqe,
		.wr.send_flags = IB_SEND_SIGNALED,
		.mr = mr->mr,
		.key = mr->mr->rkey,
		.access = region->writable ? IB_ACCESS_REMOTE_WRITE | IB_ACCESS_LOCAL_WRITE :
					     IB_ACCESS_REMOTE_READ,
	};
	return ib_post_send(sc->ib.qp, &request->wr, NULL);
}

/*
 * Tell the device. smbdirect has a function for it, but that one gives the
 * device's address away, and waits for no completion of its own.
 */
static int sdsock_map(struct sdsock *ss, struct sdsock_region *region, unsigned long start,
		      size_t len, struct smbdirect_descriptor_v1 *descriptor)
{
	struct smbdirect_mr_io *mr;
	struct smbdirect_socket *sc;
	bool closed;
	int ret;

	/* it keeps the transport, and others from its registrations */
	lockdep_assert_held(&ss->rdma.lock);
	spin_lock(&ss->lock);
	closed = ss->tx.closed;
	spin_unlock(&ss->lock);
	if (closed)
		return -ENOTCONN;
	sc = ss->sc;
	if (region->num_pages > sc->parameters.max_frmr_depth)
		return -EMSGSIZE;
	mr = sdsock_get_mr(sc);
	if (!mr)
		return -ENOBUFS;

	mutex_lock(&mr->mutex);
	mr->need_invalidate = false;	/* see sdsock_renew() */
	mr->sgt.nents = 0;
	mr->sgt.orig_nents = 0;
	ret = sdsock_map_pages(sc, mr, region, start, len);
	if (!ret)
		ret = sdsock_post_registration(sc, mr, region);
	descriptor->offset = cpu_to_le64(mr->mr->iova);
	descriptor->token = cpu_to_le32(mr->mr->rkey);
	descriptor->length = cpu_to_le32(len);
	region->token = mr->mr->rkey;
	mutex_unlock(&mr->mutex);
	if (ret) {
		/* the device does not know it; smbdirect may use it again */
		smbdirect_connection_deregister_mr_io(mr);
		return -ENOTCONN;
	}
	region->mr = mr;
	list_add_tail(&region->list, &ss->rdma.regions);
	WRITE_ONCE(ss->rdma.num_regions, ss->rdma.num_regions + 1);
	return 0;
}

int sdsock_register_region(struct sdsock *ss, struct msghdr *msg, bool writable,
			   struct smbdirect_descriptor_v1 *descriptor)
{
	size_t len = msg_data_left(msg);
	struct sdsock_region *region;
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

	region = sdsock_pin(start, num_pages, writable);
	if (IS_ERR(region))
		return PTR_ERR(region);

	mutex_lock(&ss->rdma.lock);
	ret = sdsock_map(ss, region, start, len, descriptor);
	mutex_unlock(&ss->rdma.lock);
	if (ret) {
		region->writable = false;
		sdsock_unpin(region);
	}
	return ret;
}

struct sdsock_region *sdsock_find_region(struct sdsock *ss, u32 token)
{
	struct sdsock_region *region;

	lockdep_assert_held(&ss->rdma.lock);
	list_for_each_entry(region, &ss->rdma.regions, list) {
		if (region->token == token)
			return region;
	}
	return NULL;
}

/* So that only the caller can end it. */
void sdsock_take_region(struct sdsock *ss, struct sdsock_region *region)
{
	lockdep_assert_held(&ss->rdma.lock);
	list_del(&region->list);
	WRITE_ONCE(ss->rdma.num_regions, ss->rdma.num_regions - 1);
}

void sdsock_put_region_back(struct sdsock *ss, struct sdsock_region *region)
{
	lockdep_assert_held(&ss->rdma.lock);
	list_add_tail(&region->list, &ss->rdma.regions);
	WRITE_ONCE(ss->rdma.num_regions, ss->rdma.num_regions + 1);
}

/*
 * Take the memory away from the device, whether the peer has invalidated the
 * registration or not: smbdirect does not pass that on, a peer's word would not
 * be enough, and some hardware fails a request that invalidates what is invalid.
 * So the registration is destroyed, with its key, and another takes its place.
 */
static int sdsock_renew(struct smbdirect_socket *sc, struct smbdirect_mr_io *mr)
{
	struct ib_mr *next;
	int ret = 0;

	mutex_lock(&mr->mutex);
	if (mr->state == SMBDIRECT_MR_REGISTERED) {
		next = ib_alloc_mr(sc->ib.pd, sc->mr_io.type, sc->parameters.max_frmr_depth);
		if (IS_ERR(next)) {
			ret = -ENOMEM;
		} else {
			ib_dereg_mr(mr->mr);
			mr->mr = next;
		}
	}
	mutex_unlock(&mr->mutex);
	return ret;
}

/*
 * The device is done with the memory when this returns 0. Otherwise the
 * connection has to end first: the caller keeps the region until then. The
 * caller holds rdma.lock, or is the work that sdsock_stop_io() flushes: either
 * keeps the transport.
 */
static int sdsock_withdraw(struct sdsock *ss, struct sdsock_region *region)
{
	struct smbdirect_socket *sc = ss->sc;

	if (WARN_ON_ONCE(!sc))
		return -ENOTCONN;
	/* after sdsock_stop_io() the device has nothing left to do */
	if (!READ_ONCE(ss->tx.stopped) &&
	    (!wait_for_completion_timeout(&region->registered, SDSOCK_REGISTRATION_TIMEOUT) ||
	     sdsock_renew(sc, region->mr))) {
		sdsock_disconnect(ss, sc);
		return -ECONNRESET;
	}
	smbdirect_connection_deregister_mr_io(region->mr);
	sdsock_unpin(region);
	return 0;
}

int sdsock_end_region(struct sdsock *ss, struct sdsock_region *region)
{
	int ret = sdsock_withdraw(ss, region);

	if (ret) {
		mutex_lock(&ss->rdma.lock);
		sdsock_put_region_back(ss, region);
		mutex_unlock(&ss->rdma.lock);
	}
	return ret;
}

/* Before the transport goes, or when nobody can ask for it any more. */
void sdsock_free_regions(struct sdsock *ss)
{
	struct sdsock_region *region, *next;

	mutex_lock(&ss->rdma.lock);
	list_for_each_entry_safe(region, next, &ss->rdma.regions, list) {
		sdsock_take_region(ss, region);
		if (sdsock_withdraw(ss, region)) {
			sdsock_put_region_back(ss, region);
			break;
		}
	}
	mutex_unlock(&ss->rdma.lock);
}
