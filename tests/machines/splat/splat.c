// SPDX-License-Identifier: GPL-2.0
/*
 * Makes the kernel report a mistake of the kind that is asked for, so that the
 * testbed can be shown to see it:
 *
 *	echo KIND > /sys/module/splat/parameters/make
 *
 * All are made in splat_inner(), which splat_outer() calls. Some end the
 * machine, and what others take is never given back: for a machine of its own.
 */

#include <linux/delay.h>
#include <linux/interrupt.h>
#include <linux/kobject.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/netdevice.h>
#include <linux/rcupdate.h>
#include <linux/refcount.h>
#include <linux/skbuff.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/timer.h>
#include <linux/uaccess.h>
#include <linux/mman.h>
#include <linux/mm.h>
#include <linux/vmalloc.h>
#include <linux/workqueue.h>

static DEFINE_MUTEX(lock_a);
static DEFINE_MUTEX(lock_b);
static DEFINE_SPINLOCK(plain_lock);
static DEFINE_SPINLOCK(irq_lock);
static refcount_t count = REFCOUNT_INIT(0);
static struct timer_list static_timer;
static int array[4];
static int zero;
module_param(zero, int, 0600); /* The compiler must not know it. */

static void do_nothing_timer(struct timer_list *timer)
{
}

static void do_nothing_work(struct work_struct *work)
{
}

/* Plain memory that no other allocation is merged with. */
static struct kmem_cache *make_cache(slab_flags_t flags)
{
	return kmem_cache_create("splat_cache", 100, 0, flags | SLAB_NO_MERGE, NULL);
}

static void splat_warning(void)
{
	WARN_ON(!zero);
}

static void splat_message(void)
{
	WARN(1, "smbdirect: %d credits left\n", 3);
}

static void splat_bug(void)
{
	BUG_ON(!zero);
}

static void splat_oops(void)
{
	*(volatile int *)(unsigned long)(zero + 0x18) = 1;
}

static void splat_panic(void)
{
	panic("splat was told to");
}

static void splat_list(void)
{
	static LIST_HEAD(head);
	static struct list_head entry;

	list_add(&entry, &head);
	list_del(&entry);
	list_del(&entry);
}

static void splat_refcount(void)
{
	refcount_inc(&count);
}

static void splat_usercopy(void)
{
	struct kmem_cache *cache = make_cache(0);
	unsigned long user = vm_mmap(NULL, 0, PAGE_SIZE, PROT_READ | PROT_WRITE,
				     MAP_ANONYMOUS | MAP_PRIVATE, 0);
	char *memory = cache ? kmem_cache_alloc(cache, GFP_KERNEL) : NULL;

	if (memory && !IS_ERR_VALUE(user) &&
	    copy_to_user((void __user *)user, memory + zero, 16 + zero))
		pr_info("the page cannot be written\n");
}

static void splat_slab_objects(void)
{
	struct kmem_cache *cache = make_cache(0);

	if (cache && kmem_cache_alloc(cache, GFP_KERNEL))
		kmem_cache_destroy(cache);
}

static void splat_slab_redzone(void)
{
	struct kmem_cache *cache = make_cache(SLAB_RED_ZONE | SLAB_POISON | SLAB_STORE_USER |
					      SLAB_CONSISTENCY_CHECKS);
	char *memory = cache ? kmem_cache_alloc(cache, GFP_KERNEL) : NULL;
	char *end = memory + 104 + zero;

	if (!memory)
		return;
	OPTIMIZER_HIDE_VAR(end);
	*end = 1;
	kmem_cache_free(cache, memory);
}

static void splat_use_after_free(void)
{
	char *memory = kmalloc(64, GFP_KERNEL);

	if (!memory)
		return;
	kfree(memory);
	OPTIMIZER_HIDE_VAR(memory);
	WRITE_ONCE(memory[8], 1);
}

static void splat_out_of_bounds(void)
{
	char *memory = kmalloc(60, GFP_KERNEL);
	char *end = memory + 60 + zero;

	if (!memory)
		return;
	OPTIMIZER_HIDE_VAR(end);
	pr_info("behind it is %d\n", READ_ONCE(*end));
	kfree(memory);
}

static void splat_leak(void)
{
	char *memory = kmalloc(64, GFP_KERNEL);

	OPTIMIZER_HIDE_VAR(memory);
	memory = NULL;
	OPTIMIZER_HIDE_VAR(memory);
}

static void splat_index(void)
{
	int i = 4 + zero;

	OPTIMIZER_HIDE_VAR(i);
	pr_info("there is %d\n", READ_ONCE(array[i]));
}

static void splat_shift(void)
{
	int by = 40 + zero;

	OPTIMIZER_HIDE_VAR(by);
	pr_info("shifted: %d\n", 1 << by);
}

static void splat_active_timer(void)
{
	struct timer_list *timer = kmalloc(sizeof(*timer), GFP_KERNEL);

	if (!timer)
		return;
	timer_setup(timer, do_nothing_timer, 0);
	mod_timer(timer, jiffies + 1000 * HZ);
	kfree(timer);
}

static void splat_init_active_timer(void)
{
	timer_setup(&static_timer, do_nothing_timer, 0);
	mod_timer(&static_timer, jiffies + 1000 * HZ);
	timer_setup(&static_timer, do_nothing_timer, 0);
	timer_delete_sync(&static_timer);
}

static void splat_kobject(void)
{
	static struct kobj_type type;
	static struct kobject object;

	kobject_init(&object, &type);
	kobject_init(&object, &type);
}

static void splat_sysfs(void)
{
	struct kobject *first = kobject_create_and_add("splat_twice", NULL);
	struct kobject *second = kobject_create_and_add("splat_twice", NULL);

	kobject_put(second);
	kobject_put(first);
}

static irqreturn_t handle_irq(int irq, void *data)
{
	return IRQ_NONE;
}

static void splat_irq_flags(void)
{
	int irq;

	for (irq = 0; irq < 16; irq++)
		if (request_irq(irq, handle_irq, IRQF_SHARED, "splat", &array) == -EBUSY)
			return;
}

static void leave_preemption_off(struct tasklet_struct *tasklet)
{
	preempt_disable();
}

static void splat_softirq(void)
{
	static struct tasklet_struct tasklet;

	tasklet_setup(&tasklet, leave_preemption_off);
	tasklet_schedule(&tasklet);
	msleep(50);
	tasklet_kill(&tasklet);
}

static void splat_checksum(void)
{
	struct sk_buff *skb = alloc_skb(64, GFP_KERNEL);

	if (!skb)
		return;
	skb_put_data(skb, "abcdefgh", 8);
	netdev_rx_csum_fault(init_net.loopback_dev, skb);
	kfree_skb(skb);
}

static void splat_page_allocation(void)
{
	static struct page *pages[4096];
	int i, taken = 0;

	while (taken < ARRAY_SIZE(pages)) {
		pages[taken] = alloc_pages(GFP_ATOMIC, MAX_PAGE_ORDER);
		if (!pages[taken])
			break;
		taken++;
	}
	for (i = 0; i < taken; i++)
		__free_pages(pages[i], MAX_PAGE_ORDER);
}

static void splat_vmalloc(void)
{
	vfree(vmalloc((totalram_pages() + 1 + zero) << PAGE_SHIFT));
}

static void splat_atomic_sleep(void)
{
	spin_lock(&plain_lock);
	mutex_lock(&lock_a);
	mutex_unlock(&lock_a);
	spin_unlock(&plain_lock);
}

static void splat_scheduling(void)
{
	preempt_disable();
	schedule_timeout_uninterruptible(1);
	preempt_enable();
}

static void leak_preemption(struct work_struct *work)
{
	preempt_disable();
}

static void splat_workqueue(void)
{
	static DECLARE_WORK(work, leak_preemption);

	schedule_work(&work);
	flush_work(&work);
}

static void splat_lock_circle(void)
{
	mutex_lock(&lock_a);
	mutex_lock(&lock_b);
	mutex_unlock(&lock_b);
	mutex_unlock(&lock_a);
	mutex_lock(&lock_b);
	mutex_lock(&lock_a);
	mutex_unlock(&lock_a);
	mutex_unlock(&lock_b);
}

static void splat_lock_recursion(void)
{
	struct mutex *two[2];
	int i;

	for (i = 0; i < 2; i++) {
		two[i] = kmalloc(sizeof(**two), GFP_KERNEL);
		if (!two[i])
			return;
		mutex_init(two[i]);
	}
	mutex_lock(two[0]);
	mutex_lock(two[1]);
	mutex_unlock(two[1]);
	mutex_unlock(two[0]);
}

static void lock_in_timer(struct timer_list *timer)
{
	spin_lock(&irq_lock);
	spin_unlock(&irq_lock);
}

static void splat_lock_state(void)
{
	timer_setup(&static_timer, lock_in_timer, 0);
	mod_timer(&static_timer, jiffies + 1);
	msleep(50);
	spin_lock(&irq_lock);
	spin_unlock(&irq_lock);
	timer_delete_sync(&static_timer);
}

static void splat_lock_balance(void)
{
	mutex_lock(&lock_a);
	mutex_unlock(&lock_a);
	lock_map_release(&lock_a.dep_map);
}

static void splat_lock_freed(void)
{
	struct mutex *mutex = kmalloc(sizeof(*mutex), GFP_KERNEL);

	if (!mutex)
		return;
	mutex_init(mutex);
	mutex_lock(mutex);
	kfree(mutex);
}

static void splat_lock_key(void)
{
	struct {
		spinlock_t lock;
		struct lock_class_key key;
	} *it = kzalloc(sizeof(*it), GFP_KERNEL);

	if (!it)
		return;
	spin_lock(&it->lock);
	spin_unlock(&it->lock);
	kfree(it);
}

static void splat_rcu(void)
{
	static int __rcu *pointer;

	pr_info("it is %p\n", rcu_dereference(pointer));
}

static void splat_wait_context(void)
{
	static DEFINE_RAW_SPINLOCK(raw);

	raw_spin_lock(&raw);
	spin_lock(&plain_lock);
	spin_unlock(&plain_lock);
	raw_spin_unlock(&raw);
}

/* For as long as the test said that a task may be blocked. */
static void splat_hung(void)
{
	schedule_timeout_uninterruptible(6 * HZ);
}

static void splat_hung_io(void)
{
	io_schedule_timeout(6 * HZ);
}

static void splat_hung_mutex(void)
{
	mutex_lock(&lock_a);
	mutex_unlock(&lock_a);
}

static void do_nothing_netdev(struct net_device *dev)
{
	dev->needs_free_netdev = true;
}

static netdev_tx_t drop(struct sk_buff *skb, struct net_device *dev)
{
	kfree_skb(skb);
	return NETDEV_TX_OK;
}

static const struct net_device_ops splat_netdev_ops = { .ndo_start_xmit = drop };

static struct net_device *held;
static netdevice_tracker tracker;

static void give_back(struct work_struct *work)
{
	netdev_put(held, &tracker);
}

static void splat_device_held(void)
{
	static DECLARE_DELAYED_WORK(work, give_back);

	held = alloc_netdev(0, "splat%d", NET_NAME_ENUM, do_nothing_netdev);
	if (!held)
		return;
	held->netdev_ops = &splat_netdev_ops;
	if (register_netdev(held)) {
		free_netdev(held);
		return;
	}
	netdev_hold(held, &tracker, GFP_KERNEL);
	schedule_delayed_work(&work, 12 * HZ);
	unregister_netdev(held);
}

#define KIND(name) { #name, splat_##name }
static const struct {
	const char *name;
	void (*make)(void);
} kinds[] = {
	KIND(warning), KIND(message), KIND(bug), KIND(oops), KIND(panic), KIND(list),
	KIND(refcount), KIND(usercopy), KIND(slab_objects), KIND(slab_redzone),
	KIND(use_after_free), KIND(out_of_bounds), KIND(leak), KIND(index), KIND(shift),
	KIND(active_timer), KIND(init_active_timer), KIND(kobject), KIND(sysfs), KIND(irq_flags),
	KIND(softirq), KIND(checksum), KIND(page_allocation), KIND(vmalloc), KIND(atomic_sleep),
	KIND(scheduling), KIND(workqueue), KIND(lock_circle), KIND(lock_recursion),
	KIND(lock_state), KIND(lock_balance), KIND(lock_freed), KIND(lock_key), KIND(rcu),
	KIND(wait_context), KIND(hung), KIND(hung_io), KIND(hung_mutex), KIND(device_held),
};

static void do_hold(struct work_struct *work)
{
	mutex_lock(&lock_a);
	msleep(6000);
	mutex_unlock(&lock_a);
}

static DECLARE_WORK(hold, do_hold);

static noinline void splat_inner(void (*make)(void))
{
	make();
	barrier(); /* No tail call, which would take this function off the trace. */
}

static noinline void splat_outer(void (*make)(void))
{
	if (make == splat_hung_mutex) {
		schedule_work(&hold);
		msleep(100);
	}
	splat_inner(make);
	barrier();
}

static int make_one(const char *value, const struct kernel_param *param)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(kinds); i++)
		if (sysfs_streq(value, kinds[i].name)) {
			splat_outer(kinds[i].make);
			return 0;
		}
	return -EINVAL;
}

static const struct kernel_param_ops make_ops = { .set = make_one };
module_param_cb(make, &make_ops, NULL, 0200);
MODULE_PARM_DESC(make, "the kind of mistake to make now");

MODULE_DESCRIPTION("Mistakes on demand, for tests of what sees them");
MODULE_LICENSE("GPL");
