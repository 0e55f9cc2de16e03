// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * For tests only: an RDMA device can do less while this is loaded, since soft
 * devices can do all that smbdirect needs; or somebody else has the protocol of
 * our sockets.
 */
#include <linux/module.h>
#include <linux/netdevice.h>
#include <linux/nsproxy.h>
#include <net/protocol.h>
#include <rdma/ib_verbs.h>

static char *netdev;
module_param(netdev, charp, 0444);
MODULE_PARM_DESC(netdev, "network interface of the RDMA device, here");

static char *lacks;
module_param(lacks, charp, 0444);
MODULE_PARM_DESC(lacks, "what it cannot do any more: \"frwr\", fast registration, or \"sge\", gather six pieces");

static bool offers;
module_param(offers, bool, 0444);
MODULE_PARM_DESC(offers, "offer sockets of protocol 257, which nobody may ask for");

static struct inet_protosw other = {
	.type = SOCK_STREAM,
	.protocol = 257,
};

static struct ib_device *weakened;
static struct ib_device_attr before;

static int __init weak_device_init(void)
{
	struct net_device *interface;

	if (offers) {
		inet_register_protosw(&other);
		return 0;
	}
	if (!netdev || !lacks)
		return -EINVAL;
	interface = dev_get_by_name(current->nsproxy->net_ns, netdev);
	if (!interface)
		return -ENODEV;
	weakened = ib_device_get_by_netdev(interface, RDMA_DRIVER_UNKNOWN);
	dev_put(interface);
	if (!weakened)
		return -ENODEV;
	before = weakened->attrs;
	if (!strcmp(lacks, "frwr")) {
		weakened->attrs.device_cap_flags &= ~IB_DEVICE_MEM_MGT_EXTENSIONS;
	} else if (!strcmp(lacks, "sge")) {
		weakened->attrs.max_send_sge = 5;
	} else {
		ib_device_put(weakened);
		return -EINVAL;
	}
	return 0;
}

static void __exit weak_device_exit(void)
{
	if (offers) {
		inet_unregister_protosw(&other);
		return;
	}
	weakened->attrs.device_cap_flags = before.device_cap_flags;
	weakened->attrs.max_send_sge = before.max_send_sge;
	ib_device_put(weakened);
}

module_init(weak_device_init);
module_exit(weak_device_exit);
MODULE_DESCRIPTION("RDMA devices that can do less, for tests");
MODULE_LICENSE("GPL");
