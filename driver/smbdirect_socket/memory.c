// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Memory accounting, as TCP's: what a socket queues, and what is allocated for
 * its connection, counts against one limit for all sockets of the protocol,
 * against shares of it, and against the socket's memory control group.
 */
#include "sdsock.h"

#include <linux/mm.h>
#include <linux/overflow.h>

/* What a device's driver keeps for a message to be received, or sent, roughly */
#define SDSOCK_RECV_COST 256
#define SDSOCK_SEND_COST 1024
/* For a registration: besides a scatterlist, and what the driver keeps for a page */
#define SDSOCK_MR_COST 1024
#define SDSOCK_MR_PAGE_COST (sizeof(struct scatterlist) + 16)
/* rdma_rw has registrations of so many pages for the side that accepted, if any */
#define SDSOCK_RW_PAGES 256
/* The most that SLUB takes at once, to be divided among objects */
#define SDSOCK_SLAB (PAGE_SIZE << PAGE_ALLOC_COSTLY_ORDER)

static unsigned int memory_limit_mb;
module_param(memory_limit_mb, uint, 0444);
MODULE_PARM_DESC(memory_limit_mb,
		 "memory of all sockets together in MiB (default 0: half of the machine's)");

atomic_long_t sdsock_memory_allocated;
DEFINE_PER_CPU(int, sdsock_memory_reserve);
long sdsock_memory_limits[3];
int sdsock_memory_minimum;	/* 0: no socket may pass the limit */

int __init sdsock_memory_init(void)
{
	long limit = totalram_pages() / 2;

	if (memory_limit_mb)
		limit = (long)memory_limit_mb << (20 - PAGE_SHIFT);
	for (size_t i = 0; i < ARRAY_SIZE(sdsock_memory_limits); i++)
		sdsock_memory_limits[i] = limit;
	return sdsock_account_init(limit << PAGE_SHIFT);
}

/* Core code counts in int: a listener's connections may be more together. */
#define SDSOCK_MOST ((size_t)1 << 30)

bool sdsock_charge(struct sdsock *ss, size_t size)
{
	struct sock *sk = sdsock_sk(ss);
	bool ok;

	if (size > SDSOCK_MOST)
		return false;
	if (!sdsock_charge_shares(ss, size))
		return false;
	mutex_lock(&ss->memory.lock);
	/* not SK_MEM_SEND, which may pass the limit */
	ok = size <= sk->sk_forward_alloc ||
	     __sk_mem_schedule(sk, size - sk->sk_forward_alloc, SK_MEM_RECV);
	if (ok)
		sk_mem_charge(sk, size);
	mutex_unlock(&ss->memory.lock);
	if (!ok)
		sdsock_uncharge_shares(ss, size);
	return ok;
}

void sdsock_uncharge(struct sdsock *ss, size_t size)
{
	size_t part;

	sdsock_uncharge_shares(ss, size);
	mutex_lock(&ss->memory.lock);
	for (; size; size -= part) {
		part = min(size, SDSOCK_MOST);
		sk_mem_uncharge(sdsock_sk(ss), part);
	}
	mutex_unlock(&ss->memory.lock);
}

/* smbdirect's pool of receive buffers has as many in reserve as it gave out. */
static size_t sdsock_reserve_size(const struct smbdirect_socket_parameters *sp)
{
	size_t object = ALIGN(sizeof(struct smbdirect_recv_io) + sp->max_recv_size, L1_CACHE_BYTES);

	return sp->recv_credit_max * (SDSOCK_SLAB / (SDSOCK_SLAB / object));
}

/* A device's queues last as long as the transport. */
static size_t sdsock_queues_size(const struct smbdirect_socket_parameters *sp)
{
	return sp->recv_credit_max * SDSOCK_RECV_COST +
	       (sp->send_credit_target + 4 * sp->responder_resources) * SDSOCK_SEND_COST;
}

static size_t sdsock_mr_size(size_t pages)
{
	return SDSOCK_MR_COST + pages * SDSOCK_MR_PAGE_COST;
}

/* The most that the side which connects needs in order to let the other at its memory */
static size_t sdsock_mrs_size(const struct smbdirect_socket_parameters *sp)
{
	return 2 * sp->responder_resources * sdsock_mr_size(sp->max_frmr_depth);
}

/* What it has, once connected: the peer, and the device, may have been for less. */
static size_t sdsock_agreed_mrs_size(const struct smbdirect_socket *sc)
{
	return (atomic_read(&sc->mr_io.ready.count) + atomic_read(&sc->mr_io.used.count)) *
	       sdsock_mr_size(sc->parameters.max_frmr_depth);
}

/* What the side needs that accepts, with devices that cannot do without */
static size_t sdsock_rw_size(const struct smbdirect_socket_parameters *sp)
{
	size_t pages = sp->max_read_write_size / PAGE_SIZE;

	return (DIV_ROUND_UP(pages, SDSOCK_RW_PAGES) + 1) * sdsock_mr_size(SDSOCK_RW_PAGES);
}

/* What is allocated for a connection. */
static size_t sdsock_buffers_size(struct sdsock *ss)
{
	struct smbdirect_socket_parameters sp;

	sdsock_fill_parameters(ss, &sp);
	return 2 * sdsock_reserve_size(&sp) + sdsock_queues_size(&sp) +
	       (ss->active ? sdsock_mrs_size(&sp) : sdsock_rw_size(&sp));
}

/* Charged before there is a connection. */
bool sdsock_charge_buffers(struct sdsock *ss)
{
	size_t size = sdsock_buffers_size(ss);

	if (ss->memory.buffers)
		return true;
	if (!sdsock_charge(ss, size))
		return false;
	ss->memory.buffers = size;
	return true;
}

static void sdsock_uncharge_down_to(struct sdsock *ss, size_t left)
{
	if (ss->memory.buffers > left) {
		sdsock_uncharge(ss, ss->memory.buffers - left);
		ss->memory.buffers = left;
	}
}

/* An established connection takes nothing from its pool any more. */
void sdsock_drop_reserve(struct sdsock *ss)
{
	struct smbdirect_socket_parameters sp;

	mempool_resize(ss->sc->recv_io.mem.pool, 1);
	sdsock_fill_parameters(ss, &sp);
	sdsock_uncharge_down_to(ss, sdsock_reserve_size(&sp) + sdsock_queues_size(&sp) +
				    (ss->active ? sdsock_agreed_mrs_size(ss->sc) :
						  sdsock_rw_size(&sp)));
}

/*
 * A transport at its end, which the device is done with, needs no buffers while
 * it waits for its turn in sdsock_release_transport().
 */
void sdsock_drop_buffers(struct sdsock *ss, struct smbdirect_socket *sc)
{
	mempool_t *pool = sc->recv_io.mem.pool;
	struct smbdirect_socket_parameters sp;
	struct smbdirect_recv_io *recv_io, *next;
	LIST_HEAD(unused);

	if (!pool)
		return;
	spin_lock_irq(&sc->recv_io.free.lock);
	list_splice_init(&sc->recv_io.free.list, &unused);
	spin_unlock_irq(&sc->recv_io.free.lock);
	mempool_resize(pool, 1);
	list_for_each_entry_safe(recv_io, next, &unused, list)
		mempool_free(recv_io, pool);
	sdsock_fill_parameters(ss, &sp);
	sdsock_uncharge_down_to(ss, sdsock_queues_size(&sp) +
				    (ss->active ? sdsock_agreed_mrs_size(sc) :
						  sdsock_rw_size(&sp)));
}

void sdsock_uncharge_buffers(struct sdsock *ss)
{
	sdsock_uncharge_down_to(ss, 0);
	if (ss->memory.children)
		sdsock_uncharge(ss, ss->memory.children);
	ss->memory.children = 0;
}

/* Peers that nobody knows yet may not take all that there is. */
#define SDSOCK_MOST_CHILDREN ((size_t)sdsock_memory_limits[0] << PAGE_SHIFT >> 1)

/*
 * A listener is charged for the connections that it has not been asked for yet,
 * and for as many more as the caller is about to have it make.
 */
bool sdsock_charge_children(struct sdsock *ss, struct smbdirect_socket *sc, size_t more)
{
	size_t size;
	bool ok = true;

	spin_lock_irq(&sc->listen.lock);
	more += list_count_nodes(&sc->listen.pending) + list_count_nodes(&sc->listen.ready) +
		list_count_nodes(&sc->listen.orphaned);
	spin_unlock_irq(&sc->listen.lock);
	if (check_mul_overflow(more, sdsock_buffers_size(ss), &size) ||
	    size > SDSOCK_MOST_CHILDREN)
		return false;

	mutex_lock(&ss->memory.children_lock);
	if (size > ss->memory.children)
		ok = sdsock_charge(ss, size - ss->memory.children);
	else if (size < ss->memory.children)
		sdsock_uncharge(ss, ss->memory.children - size);
	if (ok)
		ss->memory.children = size;
	mutex_unlock(&ss->memory.children_lock);
	return ok;
}

/* One of them is about to be charged to the socket that it gets. */
void sdsock_uncharge_child(struct sdsock *ss)
{
	size_t size = sdsock_buffers_size(ss);

	mutex_lock(&ss->memory.children_lock);
	if (size <= ss->memory.children) {
		sdsock_uncharge(ss, size);
		ss->memory.children -= size;
	}
	mutex_unlock(&ss->memory.children_lock);
}
