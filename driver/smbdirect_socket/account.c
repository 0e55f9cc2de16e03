// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Shares of the memory that all sockets may have together: of a user, of a
 * network namespace, and of all who may not configure the network. One user
 * cannot lock others out, and nobody can lock out the administrator's servers.
 */
#include "sdsock.h"

#include <linux/cred.h>
#include <linux/hashtable.h>
#include <linux/user_namespace.h>

static unsigned int memory_user_percent = 25;
module_param(memory_user_percent, uint, 0444);
MODULE_PARM_DESC(memory_user_percent,
		 "share of the memory that a user without CAP_NET_ADMIN may take (1-100, default 25)");

static unsigned int memory_netns_percent = 50;
module_param(memory_netns_percent, uint, 0444);
MODULE_PARM_DESC(memory_netns_percent,
		 "share of all such users of a network namespace but the first (1-100, default 50)");

static unsigned int memory_users_percent = 75;
module_param(memory_users_percent, uint, 0444);
MODULE_PARM_DESC(memory_users_percent,
		 "share of all such users together (1-100, default 75); the rest is the administrator's");

/* A user's memory, as long as he has a socket */
struct sdsock_account {
	struct hlist_node node;
	kuid_t uid;
	unsigned int sockets;
	atomic_long_t bytes;
};

static DEFINE_HASHTABLE(sdsock_accounts, 6);
static DEFINE_MUTEX(sdsock_accounts_lock);	/* of the table, and of what counts sockets */
static atomic_long_t sdsock_users_bytes;
static long sdsock_user_limit, sdsock_netns_limit, sdsock_users_limit;

/*
 * Who pays. A user may have many ids in user namespaces of his own: there the
 * user pays who made the outermost. Those that the administrator made, for containers,
 * have ids of their own.
 */
static kuid_t sdsock_payer(void)
{
	const struct user_namespace *ns = current_user_ns();

	if (ns == &init_user_ns)
		return current_euid();
	while (ns->parent != &init_user_ns)
		ns = ns->parent;
	return uid_eq(ns->owner, GLOBAL_ROOT_UID) ? current_euid() : ns->owner;
}

static struct sdsock_account *sdsock_find_account(kuid_t uid)
{
	struct sdsock_account *account;

	lockdep_assert_held(&sdsock_accounts_lock);
	hash_for_each_possible(sdsock_accounts, account, node, __kuid_val(uid)) {
		if (uid_eq(account->uid, uid))
			return account;
	}
	account = kzalloc(sizeof(*account), GFP_KERNEL_ACCOUNT);
	if (account) {
		account->uid = uid;
		hash_add(sdsock_accounts, &account->node, __kuid_val(uid));
	}
	return account;
}

/* For a socket that is being made by the current process. */
int sdsock_open_account(struct sdsock *ss)
{
	struct sdsock_account *account;

	ss->memory.unlimited = ns_capable_noaudit(&init_user_ns, CAP_NET_ADMIN);
	mutex_lock(&sdsock_accounts_lock);
	account = sdsock_find_account(sdsock_payer());
	if (account)
		account->sockets++;
	mutex_unlock(&sdsock_accounts_lock);
	ss->memory.account = account;
	return account ? 0 : -ENOMEM;
}

/* The listening user pays for what is accepted, also when another accepts it. */
void sdsock_share_account(struct sdsock *ss, const struct sdsock *listener)
{
	mutex_lock(&sdsock_accounts_lock);
	listener->memory.account->sockets++;
	mutex_unlock(&sdsock_accounts_lock);
	ss->memory.account = listener->memory.account;
	ss->memory.unlimited = listener->memory.unlimited;
}

/* May be called more than once. */
void sdsock_close_account(struct sdsock *ss)
{
	struct sdsock_account *account = ss->memory.account;

	if (!account)
		return;
	ss->memory.account = NULL;
	mutex_lock(&sdsock_accounts_lock);
	if (!--account->sockets) {
		WARN_ON_ONCE(atomic_long_read(&account->bytes));
		hash_del(&account->node);
		kfree(account);
	}
	mutex_unlock(&sdsock_accounts_lock);
}

static bool sdsock_add(atomic_long_t *bytes, size_t size, long limit)
{
	if (atomic_long_add_return(size, bytes) <= limit)
		return true;
	atomic_long_sub(size, bytes);
	return false;
}

/* The share of a socket's network namespace; none in the first, which is everybody's. */
static atomic_long_t *sdsock_netns_bytes(const struct sdsock *ss)
{
	struct net *net = sock_net(&ss->inet.sk);

	return net_eq(net, &init_net) ? NULL : &sdsock_net(net)->bytes;
}

bool sdsock_charge_shares(struct sdsock *ss, size_t size)
{
	atomic_long_t *netns = sdsock_netns_bytes(ss);

	if (ss->memory.unlimited)
		return true;
	if (!sdsock_add(&ss->memory.account->bytes, size, sdsock_user_limit))
		return false;
	if (netns && !sdsock_add(netns, size, sdsock_netns_limit))
		goto netns_full;
	if (!sdsock_add(&sdsock_users_bytes, size, sdsock_users_limit))
		goto users_full;
	return true;

users_full:
	if (netns)
		atomic_long_sub(size, netns);
netns_full:
	atomic_long_sub(size, &ss->memory.account->bytes);
	return false;
}

void sdsock_uncharge_shares(struct sdsock *ss, size_t size)
{
	atomic_long_t *netns = sdsock_netns_bytes(ss);

	if (ss->memory.unlimited)
		return;
	atomic_long_sub(size, &ss->memory.account->bytes);
	if (netns)
		atomic_long_sub(size, netns);
	atomic_long_sub(size, &sdsock_users_bytes);
}

static int __init sdsock_check_percent(const char *name, unsigned int percent)
{
	if (percent >= 1 && percent <= 100)
		return 0;
	pr_err("%s is not within 1-100\n", name);
	return -EINVAL;
}

/* @limit: bytes of all sockets */
int __init sdsock_account_init(long limit)
{
	int ret;

	ret = sdsock_check_percent("memory_user_percent", memory_user_percent) ?:
	      sdsock_check_percent("memory_netns_percent", memory_netns_percent) ?:
	      sdsock_check_percent("memory_users_percent", memory_users_percent);
	sdsock_user_limit = limit / 100 * memory_user_percent;
	sdsock_netns_limit = limit / 100 * memory_netns_percent;
	sdsock_users_limit = limit / 100 * memory_users_percent;
	return ret;
}
