/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * IPPROTO_SMBDIRECT stream sockets on top of smbdirect.ko.
 *
 * One struct sdsock is one userspace socket. It owns at most one struct
 * smbdirect_socket ("the transport"), which is created when a name is first
 * needed and released as soon as the connection is over, so that an open file
 * descriptor never keeps an RDMA device busy.
 *
 * Locks, outermost first:
 *   rx.reader     one reader at a time; held while copying to userspace
 *   tx.writer     one writer at a time; held while copying from userspace
 *   rdma.reader   one reader of results at a time; held while copying to userspace
 *   mmap_lock     taken by these for faults
 *   lock_sock()   state changes: bind, listen, connect, accept, shutdown, end;
 *                 a listener's, then its child's
 *   rx.lock       moving segments off the transport; never held across a fault
 *   rdma.lock     registrations, and the transport while one is made or ended
 *   rdma_lock_handler()  of the transport's cm_id: the beginning of its end
 *   accepting     the end of a listener, and its handlers, which hold the lock of
 *                 the cm_id of a device
 *   memory.children_lock, memory.lock  what is charged
 *   lock          the transport pointer as seen by poll, the list of frames
 * Of its own are those of a namespace's list of sockets, outside of lock alone, and
 * of the table of accounts.
 * The transport's own wait queue locks nest inside none of these: its
 * callbacks only wake or queue work.
 */
#ifndef SDSOCK_H
#define SDSOCK_H

/*
 * fs/smb/smbdirect/internal.h: the exported calls cannot return what is left of
 * a stream after the peer disconnected, so recv.c works on the reassembly list.
 * Hence this module must be built from the sources smbdirect.ko was built from.
 */
#include "internal.h"

#include <linux/module.h>
#include <linux/net.h>
#include <linux/semaphore.h>
#include <net/inet_sock.h>
#include <net/ipv6.h>
#include <net/sock.h>

#include "../include/smbdirect_socket.h"

/* The length that precedes each frame in the byte stream, as in [MS-SMB2] 2.1 */
#define SDSOCK_PREFIX_LEN sizeof(__be32)
/* 24 bits of it are a length; a peer may claim to take more */
#define SDSOCK_MAX_FRAME 0xffffffU
/* [MS-SMBD] 1.9 */
#define SDSOCK_SMB_PORT 445
#define SDSOCK_IWARP_PORT 5445
/* The most credits that a sender keeps for messages without data */
#define SDSOCK_KEPT_CREDITS 4
/* One RDMA read, write or registration */
#define SDSOCK_MAX_READ_WRITE SZ_8M

/* A piece of the incoming byte stream, prefix included where a frame starts */
struct sdsock_chunk {
	struct list_head list;
	u32 offset;
	u32 len;
	u32 size;		/* with this header, as charged */
	u8 data[];
};

/* An outgoing frame while userspace writes it, and until the peer has it */
struct sdsock_frame {
	struct list_head list;
	u32 filled;
	u32 size;		/* with the prefix */
	u32 sent;		/* without it, as far as the transport has it */
	bool invalidate;	/* the peer's registration */
	u32 token;
	u8 data[];
};

/* Memory of a process that the peer may access */
struct sdsock_region {
	struct list_head list;
	struct smbdirect_mr_io *mr;
	struct mmpin locked;	/* as whose memory it counts */
	struct page **pages;
	u32 num_pages;
	u32 num_pinned;
	u32 token;
	bool writable;		/* by the peer */
	struct ib_cqe cqe;
	struct completion registered;
};

/* An RDMA operation, from sendmsg() until its result is fetched */
struct sdsock_op {
	struct list_head list;
	struct smbdirect_rdma_completion result;
	struct sdsock_region *region;	/* to end */
	u8 *data;
	u32 length;		/* of data */
	u32 count;		/* of descriptors */
	struct smbdirect_descriptor_v1 descriptors[];
};

struct sdsock_rx {
	struct mutex reader;
	struct mutex lock;
	struct list_head chunks;
	size_t bytes;		/* in chunks */
	u32 frame_left;		/* bytes of the current frame still to arrive */
	struct delayed_work relief;
};

struct sdsock_tx {
	struct mutex writer;
	u8 prefix[SDSOCK_PREFIX_LEN];
	u8 prefix_len;
	bool invalidate;	/* with the frame whose prefix is being written */
	u32 token;
	struct sdsock_frame *frame;
	struct list_head queue;	/* under sdsock.lock */
	size_t bytes;		/* in queue, under sdsock.lock */
	size_t frames;		/* likewise */
	unsigned long sent;	/* messages, to see progress */
	int most_credits;	/* that we ever saw on this connection */
	bool stalled;		/* the work waits for sdsock_tx_progress() */
	struct delayed_work ask;	/* for credits */
	bool waited;		/* so long that it is time to ask */
	bool asked;		/* since data went out last */
	bool closed;		/* no frame reaches the transport any more */
	bool stopped;		/* and what has reached it has left the device */
	bool lost;		/* a frame was accepted from userspace and not sent */
	bool unsure;		/* all of it was posted, but not all was completed */
	struct work_struct work;
	wait_queue_head_t idle;	/* queue became empty, or closed was set */
};

/*
 * Memory charged to the socket, which core code has no lock of ours for. Never
 * held while waiting for anything but memory.
 */
struct sdsock_memory {
	struct sdsock_account *account;	/* of the user who pays */
	bool unlimited;		/* but for the limit of all sockets */
	struct mutex lock;
	size_t buffers;		/* of the connection, as charged */
	struct mutex children_lock;
	size_t children;	/* a listener's connections, likewise */
};

struct sdsock_rdma {
	struct mutex lock;
	struct list_head regions;
	u32 num_regions;
	struct mutex reader;
	struct list_head waiting;	/* this and the rest under sdsock.lock */
	struct list_head done;
	size_t ops;		/* in both lists, and under way */
	size_t bytes;		/* of their data */
	struct work_struct work;
};

/* How many connections of a network namespace may let go of their memory at a time */
#define SDSOCK_RELEASES 4

struct sdsock_net {
	struct mutex lock;	/* of the list */
	struct list_head sockets;
	atomic_long_t bytes;	/* of those that are not unlimited */
	struct semaphore releases;
	atomic_t closing;	/* sockets that are closed, and may still send */
};

struct sdsock {
	struct inet_sock inet;	/* must be first */

	struct smbdirect_socket *sc;
	spinlock_t lock;
	wait_queue_entry_t status_watch;
	wait_queue_entry_t data_watch;
	wait_queue_entry_t ready_watch;
	wait_queue_entry_t credit_watch;
	wait_queue_entry_t sent_watch;

	struct mutex accepting;	/* held while a listener's handler runs */
	bool bound;
	bool dead_listener;	/* the device went away under it */
	bool connect_done;	/* connect() has returned 0 for this connection */
	bool active;		/* this side connected, the other accepted */
	bool discard;		/* what is not sent when the socket is closed */
	struct sockaddr_storage bound_addr;
	u32 max_frame;		/* what the peer takes, without the prefix */
	struct smbdirect_parameters wanted;	/* by setsockopt(), 0: the default */
	struct smbdirect_parameters agreed;	/* once connected */

	struct sdsock_rx rx;
	struct sdsock_tx tx;
	struct sdsock_rdma rdma;
	struct sdsock_memory memory;
	struct list_head registry;

	struct work_struct event_work;
	struct work_struct shutdown_work;
	struct work_struct close_work;

	struct ipv6_pinfo inet6; /* must be last: see ipv6_pinfo_offset */
};

static inline struct sdsock *to_sdsock(const struct sock *sk)
{
	return (struct sdsock *)sk;
}

static inline struct sock *sdsock_sk(struct sdsock *ss)
{
	return &ss->inet.sk;
}

static inline void sdsock_set_state(struct sock *sk, int state)
{
	/* pairs with poll, which looks without lock_sock() */
	smp_store_release(&sk->sk_state, state);
}

/*
 * A file calls functions of those that are named before it, and of no others;
 * main.c calls all. Work and wake functions are called by the kernel.
 */

/* work.c */
extern struct workqueue_struct *sdsock_event_wq;
extern struct workqueue_struct *sdsock_tx_wq;
extern struct workqueue_struct *sdsock_end_wq;
int sdsock_alloc_queues(void);
void sdsock_free_queues(void);

/* options.c */
extern unsigned int sdsock_linger_ms;
void sdsock_fill_parameters(const struct sdsock *ss, struct smbdirect_socket_parameters *sp);
int sdsock_apply_parameters(struct sdsock *ss);
void sdsock_size_children(struct sdsock *ss);
void sdsock_set_agreed(struct sdsock *ss);
int sdsock_setsockopt(struct socket *sock, int level, int optname, sockptr_t optval,
		      unsigned int optlen);
int sdsock_getsockopt(struct socket *sock, int level, int optname, char __user *optval,
		      int __user *optlen);
void sdsock_set_logging(struct smbdirect_socket *sc);
int sdsock_check_module_parameters(void);

/* netns.c */
struct sdsock_net *sdsock_net(const struct net *net);
int sdsock_netns_init(void);
void sdsock_netns_exit(void);

/* fit.c */
int sdsock_check_fit(void);
bool sdsock_connection_fits(struct sdsock *ss);

/* account.c */
int sdsock_open_account(struct sdsock *ss);
void sdsock_share_account(struct sdsock *ss, const struct sdsock *listener);
void sdsock_close_account(struct sdsock *ss);
bool sdsock_charge_shares(struct sdsock *ss, size_t size);
void sdsock_uncharge_shares(struct sdsock *ss, size_t size);
int sdsock_account_init(long limit);

/* memory.c */
extern atomic_long_t sdsock_memory_allocated;
DECLARE_PER_CPU(int, sdsock_memory_reserve);
extern long sdsock_memory_limits[3];
extern int sdsock_memory_minimum;
bool sdsock_charge(struct sdsock *ss, size_t size);
void sdsock_uncharge(struct sdsock *ss, size_t size);
bool sdsock_charge_buffers(struct sdsock *ss);
void sdsock_drop_reserve(struct sdsock *ss);
void sdsock_drop_buffers(struct sdsock *ss, struct smbdirect_socket *sc);
void sdsock_uncharge_buffers(struct sdsock *ss);
bool sdsock_charge_children(struct sdsock *ss, struct smbdirect_socket *sc, size_t more);
void sdsock_uncharge_child(struct sdsock *ss);
int sdsock_memory_init(void);

/* registry.c */
void sdsock_register(struct sock *sk);
void sdsock_unregister(struct sock *sk);
int sdsock_registry_init(void);
void sdsock_registry_exit(void);

/* disconnect.c */
void sdsock_disconnect(struct sdsock *ss, struct smbdirect_socket *sc);
void sdsock_drain(struct smbdirect_socket *sc);

/* rx.c */
int sdsock_pull(struct sdsock *ss);
bool sdsock_peer_is_mute(const struct smbdirect_socket *sc);
unsigned long sdsock_relief_delay(const struct smbdirect_socket *sc);
void sdsock_relief_work(struct work_struct *work);
bool sdsock_readable(struct sdsock *ss, size_t offset);
int sdsock_inq(struct sdsock *ss);
void sdsock_salvage(struct sdsock *ss);
void sdsock_discard(struct sdsock *ss);
void sdsock_free_chunk(struct sdsock *ss, struct sdsock_chunk *chunk);

/* region.c */
int sdsock_register_region(struct sdsock *ss, struct msghdr *msg, bool writable,
			   struct smbdirect_descriptor_v1 *descriptor);
struct sdsock_region *sdsock_find_region(struct sdsock *ss, u32 token);
void sdsock_take_region(struct sdsock *ss, struct sdsock_region *region);
void sdsock_put_region_back(struct sdsock *ss, struct sdsock_region *region);
int sdsock_end_region(struct sdsock *ss, struct sdsock_region *region);
void sdsock_free_regions(struct sdsock *ss);

/* rdma.c */
void sdsock_init_rdma(struct sdsock *ss);
int sdsock_submit(struct sock *sk, struct msghdr *msg, size_t len);
int sdsock_collect(struct sock *sk, struct msghdr *msg, int flags);
bool sdsock_has_result(struct sdsock *ss);
void sdsock_free_ops(struct sdsock *ss);
void sdsock_rdma_work(struct work_struct *work);

/* send.c */
int sdsock_sendmsg(struct socket *sock, struct msghdr *msg, size_t len);
void sdsock_tx_work(struct work_struct *work);
void sdsock_ask_work(struct work_struct *work);
void sdsock_tx_progress(struct sdsock *ss);
bool sdsock_writable(struct sdsock *ss);
void sdsock_release_frame(struct sdsock *ss, struct sdsock_frame *frame);

/* recv.c */
int sdsock_recvmsg(struct socket *sock, struct msghdr *msg, size_t len, int flags);

/* transport.c: life of ss->sc, under lock_sock() */
struct sdsock *sdsock_of_transport(struct smbdirect_socket *sc);
int sdsock_open_transport(struct sdsock *ss);
int sdsock_bind_transport(struct sdsock *ss, struct sockaddr_storage *addr);
void sdsock_attach_transport(struct sdsock *ss, struct smbdirect_socket *sc);
void sdsock_stop_io(struct sdsock *ss);
struct smbdirect_socket *sdsock_detach_transport(struct sdsock *ss);
void sdsock_release_transport(struct sdsock *ss, struct smbdirect_socket *sc);
void sdsock_drop_transport(struct sdsock *ss);

/* naming.c */
int sdsock_check_addr(struct sock *sk, struct sockaddr_unsized *addr, int len,
		      struct sockaddr_storage *out);
int sdsock_check_destination(const struct sockaddr_storage *addr);
int sdsock_connect_hook(struct sock *sk, struct sockaddr_unsized *addr, int *len);
int sdsock_autobind(struct sdsock *ss);
void sdsock_set_peer_addr(struct sock *sk, const struct sockaddr_storage *addr);
void sdsock_set_addrs(struct sdsock *ss);
int sdsock_bind(struct socket *sock, struct sockaddr_unsized *addr, int len);

/* events.c */
int sdsock_errno(int error);
void sdsock_event_work(struct work_struct *work);

/* connect.c */
int sdsock_connect(struct socket *sock, struct sockaddr_unsized *addr, int len, int flags);

/* listen.c */
int sdsock_listen(struct socket *sock, int backlog);
int sdsock_accept(struct socket *sock, struct socket *newsock, struct proto_accept_arg *arg);
bool sdsock_acceptable(struct sdsock *ss);

/* poll.c */
__poll_t sdsock_poll(struct file *file, struct socket *sock, poll_table *wait);
int sdsock_ioctl(struct socket *sock, unsigned int cmd, unsigned long arg);
#ifdef CONFIG_COMPAT
int sdsock_compat_ioctl(struct socket *sock, unsigned int cmd, unsigned long arg);
#endif

/* close.c */
int sdsock_shutdown(struct socket *sock, int how);
int sdsock_release(struct socket *sock);
void sdsock_shutdown_work(struct work_struct *work);
void sdsock_close_work(struct work_struct *work);

#include "trace.h"

#endif
