// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The beginning of a transport's end, which sending, receiving and registered
 * memory may each find necessary.
 */
#include "sdsock.h"

/*
 * Start the end of a transport. smbdirect's connection manager handlers look
 * for an error only when they begin: one that is set while they run makes them
 * warn, and arm a timer that outlives the transport. A listener on all addresses
 * has a handler running for each device, under that device's lock, not under its
 * own.
 */
void sdsock_disconnect(struct sdsock *ss, struct smbdirect_socket *sc)
{
	rdma_lock_handler(sc->rdma.cm_id);
	mutex_lock(&ss->accepting);
	smbdirect_socket_shutdown(sc);
	mutex_unlock(&ss->accepting);
	rdma_unlock_handler(sc->rdma.cm_id);
}

/*
 * Wait until what arrived before the disconnect has been put on the reassembly
 * list: the disconnect event can overtake the completions of receives.
 */
void sdsock_drain(struct smbdirect_socket *sc)
{
	rdma_lock_handler(sc->rdma.cm_id);
	if (sc->ib.qp)
		ib_drain_qp(sc->ib.qp);
	rdma_unlock_handler(sc->rdma.cm_id);
	flush_work(&sc->connect.work);
}
