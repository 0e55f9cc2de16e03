// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Does this module fit the kernel? It works on structures of smbdirect.ko that
 * no symbol version covers, and it offers what a kernel may offer by itself.
 */
#include "sdsock.h"

#include <net/protocol.h>

static bool sdsock_never_log(struct smbdirect_socket *sc, void *private_ptr, unsigned int lvl,
			     unsigned int cls)
{
	return false;
}

static void sdsock_log_nothing(struct smbdirect_socket *sc, const char *func,
			       unsigned int line, void *private_ptr, unsigned int lvl,
			       unsigned int cls, struct va_format *vaf)
{
}

/* What smbdirect has just initialised, where this module believes it to be */
static bool sdsock_layout_fits(struct smbdirect_socket *sc)
{
	const struct list_head *const heads[] = {
		&sc->status_wait.head,
		&sc->listen.pending,
		&sc->listen.ready,
		&sc->listen.wait_queue.head,
		&sc->listen.orphaned,
		&sc->accept.list,
		&sc->send_io.bcredits.wait_queue.head,
		&sc->send_io.lcredits.wait_queue.head,
		&sc->send_io.credits.wait_queue.head,
		&sc->send_io.pending.zero_wait_queue.head,
		&sc->recv_io.free.list,
		&sc->recv_io.reassembly.list,
		&sc->recv_io.reassembly.wait_queue.head,
		&sc->mr_io.all.list,
		&sc->mr_io.ready.wait_queue.head,
		&sc->rw_io.credits.wait_queue.head,
	};

	/* these come first: what follows lies within the structure */
	if ((const void *)smbdirect_socket_get_current_parameters(sc) != &sc->parameters ||
	    ksize(sc) < sizeof(*sc))
		return false;
	for (size_t i = 0; i < ARRAY_SIZE(heads); i++) {
		if (READ_ONCE(heads[i]->next) != heads[i] || READ_ONCE(heads[i]->prev) != heads[i])
			return false;
	}
	return sc->rdma.cm_id && sc->rdma.cm_id->context == sc &&
	       kref_read(&sc->refs.disconnect) == 1 && sc->listen.backlog == -1 &&
	       sc->send_io.mem.gfp_mask == GFP_KERNEL && sc->recv_io.mem.gfp_mask == GFP_KERNEL &&
	       sc->rw_io.mem.gfp_mask == GFP_KERNEL && sc->logging.needed == sdsock_never_log &&
	       sc->logging.vaprintf == sdsock_log_nothing;
}

static int __init sdsock_check_layout(void)
{
	struct smbdirect_socket *sc;
	int ret;

	ret = smbdirect_socket_create_kern(&init_net, &sc);
	if (ret)
		return ret;
	smbdirect_socket_set_logging(sc, NULL, sdsock_never_log, sdsock_log_nothing);
	if (!sdsock_layout_fits(sc)) {
		pr_err("not loaded: built from another source than smbdirect.ko\n");
		ret = -ENOEXEC;
	}
	smbdirect_socket_release(sc);
	return ret;
}

/*
 * The same of a connection, whose buffers and registrations have structures of
 * their own.
 */
bool sdsock_connection_fits(struct sdsock *ss)
{
	struct smbdirect_socket *sc = ss->sc;
	struct smbdirect_socket_parameters sp;
	const struct smbdirect_mr_io *mr;

	sdsock_fill_parameters(ss, &sp);
	mr = list_first_entry_or_null(&sc->mr_io.all.list, struct smbdirect_mr_io, list);
	if (kmem_cache_size(sc->recv_io.mem.cache) ==
	    sizeof(struct smbdirect_recv_io) + sp.max_recv_size && (!mr || mr->socket == sc))
		return true;
	pr_err_once("connections refused: built from another source than smbdirect.ko\n");
	return false;
}

/* Nothing can ask for this one: IPPROTO_MAX is below. */
static struct inet_protosw sdsock_nobodys_protosw __initdata = {
	.type		= SOCK_STREAM,
	.protocol	= U16_MAX,
};

/*
 * Is there another who offers the protocol? Asking for a socket would have the
 * kernel load this module. So look at the others in the list, by way of an entry
 * of our own. Its head is an element of an array of heads: what would be type and
 * protocol there are two halves of a pointer, never 1 and 257.
 */
static int __init sdsock_check_others(void)
{
	const struct list_head *at;
	bool found = false;

	inet_register_protosw(&sdsock_nobodys_protosw);
	rcu_read_lock();
	for (at = rcu_dereference(sdsock_nobodys_protosw.list.next);
	     at != &sdsock_nobodys_protosw.list; at = rcu_dereference(at->next)) {
		const struct inet_protosw *other = container_of(at, struct inet_protosw, list);

		if (other->type == SOCK_STREAM && other->protocol == IPPROTO_SMBDIRECT)
			found = true;
	}
	rcu_read_unlock();
	inet_unregister_protosw(&sdsock_nobodys_protosw);
	if (!found)
		return 0;
	pr_err("not loaded: the kernel has sockets of protocol %u\n", IPPROTO_SMBDIRECT);
	return -EEXIST;
}

int __init sdsock_check_fit(void)
{
	return sdsock_check_others() ?: sdsock_check_layout();
}
