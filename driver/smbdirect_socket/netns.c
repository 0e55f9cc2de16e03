// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What the sockets of a network namespace share, so that those of one do not
 * wait for those of another.
 */
#include "sdsock.h"

#include <net/netns/generic.h>

static unsigned int sdsock_net_id;

struct sdsock_net *sdsock_net(const struct net *net)
{
	return net_generic(net, sdsock_net_id);
}

static int __net_init sdsock_net_init(struct net *net)
{
	struct sdsock_net *sn = sdsock_net(net);

	mutex_init(&sn->lock);
	INIT_LIST_HEAD(&sn->sockets);
	sema_init(&sn->releases, SDSOCK_RELEASES);
	return 0;
}

static void __net_exit sdsock_net_exit(struct net *net)
{
	WARN_ON_ONCE(!list_empty(&sdsock_net(net)->sockets));
}

static struct pernet_operations sdsock_net_ops = {
	.init	= sdsock_net_init,
	.exit	= sdsock_net_exit,
	.id	= &sdsock_net_id,
	.size	= sizeof(struct sdsock_net),
};

int __init sdsock_netns_init(void)
{
	return register_pernet_subsys(&sdsock_net_ops);
}

void sdsock_netns_exit(void)
{
	unregister_pernet_subsys(&sdsock_net_ops);
}
