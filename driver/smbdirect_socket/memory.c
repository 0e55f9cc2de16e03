// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Memory accounting, as TCP's: what a socket queues, and the buffers of its
 * connection, count against one limit for all sockets of the protocol and
 * against the socket's memory control group.
 */
#include "sdsock.h"

#include <linux/mm.h>

/* Bytes beside the data of a receive buffer, roughly */
#define SDSOCK_BUFFER_COST 256

static unsigned int memory_limit_mb;
module_param(memory_limit_mb, uint, 0444);
MODULE_PARM_DESC(memory_limit_mb,
		 "memory of all sockets together in MiB (default 0: an eighth of the machine's)");

atomic_long_t sdsock_memory_allocated;
DEFINE_PER_CPU(int, sdsock_memory_reserve);
long sdsock_memory_limits[3];
int sdsock_memory_minimum;	/* 0: no socket may pass the limit */

void __init sdsock_memory_init(void)
{
	long limit = totalram_pages() / 8;

	if (memory_limit_mb)
		limit = (long)memory_limit_mb << (20 - PAGE_SHIFT);
	for (size_t i = 0; i < ARRAY_SIZE(sdsock_memory_limits); i++)
		sdsock_memory_limits[i] = limit;
}

bool sdsock_charge(struct sdsock *ss, size_t size)
{
	struct sock *sk = sdsock_sk(ss);
	bool ok;

	mutex_lock(&ss->memory.lock);
	/* not SK_MEM_SEND, which may pass the limit */
	ok = size <= sk->sk_forward_alloc ||
	     __sk_mem_schedule(sk, size - sk->sk_forward_alloc, SK_MEM_RECV);
	if (ok)
		sk_mem_charge(sk, size);
	mutex_unlock(&ss->memory.lock);
	return ok;
}

void sdsock_uncharge(struct sdsock *ss, size_t size)
{
	mutex_lock(&ss->memory.lock);
	sk_mem_uncharge(sdsock_sk(ss), size);
	mutex_unlock(&ss->memory.lock);
}

/* What smbdirect allocates for a connection; charged before there is one. */
bool sdsock_charge_buffers(struct sdsock *ss)
{
	struct smbdirect_socket_parameters sp;
	u32 size;

	if (ss->memory.buffers)
		return true;
	sdsock_fill_parameters(ss, &sp);
	size = sp.recv_credit_max * (sp.max_recv_size + SDSOCK_BUFFER_COST) +
	       sp.send_credit_target * SDSOCK_BUFFER_COST;
	if (!sdsock_charge(ss, size))
		return false;
	ss->memory.buffers = size;
	return true;
}

void sdsock_uncharge_buffers(struct sdsock *ss)
{
	if (ss->memory.buffers)
		sdsock_uncharge(ss, ss->memory.buffers);
	ss->memory.buffers = 0;
}
