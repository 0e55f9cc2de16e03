// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The workqueues.
 */
#include "sdsock.h"

struct workqueue_struct *sdsock_event_wq;	/* work that only waits for locks */
struct workqueue_struct *sdsock_tx_wq;		/* sending: waits for the peer's credits */
struct workqueue_struct *sdsock_end_wq;		/* closing: waits until all is sent */

void sdsock_free_queues(void)
{
	/* this order: the end of a socket waits for its sending and its events */
	if (sdsock_end_wq)
		destroy_workqueue(sdsock_end_wq);
	if (sdsock_tx_wq)
		destroy_workqueue(sdsock_tx_wq);
	if (sdsock_event_wq)
		destroy_workqueue(sdsock_event_wq);
}

/*
 * No WQ_MEM_RECLAIM: smbdirect's workqueues, which we flush, have none. A
 * closed socket that still sends and one whose RDMA is under way each keep a
 * worker, hence the highest limit for these.
 */
int __init sdsock_alloc_queues(void)
{
	sdsock_event_wq = alloc_workqueue("smbdirect-socket-event", WQ_UNBOUND, 0);
	sdsock_tx_wq = alloc_workqueue("smbdirect-socket-tx", WQ_UNBOUND, WQ_UNBOUND_MAX_ACTIVE);
	sdsock_end_wq = alloc_workqueue("smbdirect-socket-end", WQ_UNBOUND,
					WQ_UNBOUND_MAX_ACTIVE);
	if (sdsock_event_wq && sdsock_tx_wq && sdsock_end_wq)
		return 0;
	sdsock_free_queues();
	return -ENOMEM;
}
