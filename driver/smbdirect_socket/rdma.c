// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * RDMA for userspace: operations given by sendmsg(MSG_OOB), done one after the
 * other by a work item, their results fetched by recvmsg(MSG_OOB). [MS-SMBD]
 * lets the connecting side register memory and the accepting side access it.
 */
#include "sdsock.h"

#include <net/compat.h>

/* Operations of a socket from sendmsg() until recvmsg(), and bytes kept for them */
#define SDSOCK_MAX_OPS 64
#define SDSOCK_MAX_OP_BYTES (2 * SDSOCK_MAX_READ_WRITE)
/* Memory of one work request chain: keeps a transfer from filling the send queue */
#define SDSOCK_MAX_PAGES 256

static bool sdsock_is_read(const struct sdsock_op *op)
{
	return op->result.operation == SMBDIRECT_RDMA_READ;
}

static void sdsock_free_op(struct sdsock *ss, struct sdsock_op *op)
{
	WARN_ON_ONCE(op->region);
	kvfree(op->data);
	sdsock_uncharge(ss, op->length);
	kfree(op);
}

/* Make room for an operation, or refuse it: nobody can wait for his own recvmsg(). */
static struct sdsock_op *sdsock_new_op(struct sdsock *ss, u32 operation, u64 cookie, u32 bytes,
				       u32 count)
{
	struct sdsock_op *op;
	bool fits;

	spin_lock(&ss->lock);
	fits = ss->rdma.ops < SDSOCK_MAX_OPS && ss->rdma.bytes + bytes <= SDSOCK_MAX_OP_BYTES;
	if (fits) {
		ss->rdma.ops++;
		ss->rdma.bytes += bytes;
	}
	spin_unlock(&ss->lock);
	if (!fits)
		return ERR_PTR(-ENOBUFS);

	op = kzalloc(struct_size(op, descriptors, count), GFP_KERNEL_ACCOUNT);
	if (op && bytes) {
		if (sdsock_charge(ss, bytes)) {
			op->data = kvmalloc(bytes, GFP_KERNEL);
			if (!op->data)
				sdsock_uncharge(ss, bytes);
		}
		if (!op->data) {
			kfree(op);
			op = NULL;
		}
	}
	if (!op) {
		spin_lock(&ss->lock);
		ss->rdma.ops--;
		ss->rdma.bytes -= bytes;
		spin_unlock(&ss->lock);
		return ERR_PTR(-ENOBUFS);
	}
	op->result.cookie = cookie;
	op->result.operation = operation;
	op->length = bytes;
	op->count = count;
	return op;
}

/* The result has been fetched, or the operation never began. */
static void sdsock_end_op(struct sdsock *ss, struct sdsock_op *op)
{
	spin_lock(&ss->lock);
	ss->rdma.ops--;
	ss->rdma.bytes -= op->length;
	spin_unlock(&ss->lock);
	sdsock_free_op(ss, op);
	/* who waits for a result may have none to wait for any more */
	wake_up_interruptible(sk_sleep(sdsock_sk(ss)));
}

static void sdsock_complete_op(struct sdsock *ss, struct sdsock_op *op, int error)
{
	struct sock *sk = sdsock_sk(ss);

	op->result.error = -error;
	trace_smbdirect_socket_rdma(sk, op->result.operation, op->result.length, error);
	spin_lock(&ss->lock);
	/* from here on it may be fetched and freed at any time */
	list_add_tail(&op->list, &ss->rdma.done);
	spin_unlock(&ss->lock);
	sk->sk_data_ready(sk);
}

/* Returns false, and does nothing, if the work has been done for the last time. */
static bool sdsock_queue_op(struct sdsock *ss, struct sdsock_op *op)
{
	bool closed;

	spin_lock(&ss->lock);
	closed = ss->tx.closed;
	if (!closed) {
		list_add_tail(&op->list, &ss->rdma.waiting);
		queue_work(sdsock_tx_wq, &ss->rdma.work);
	}
	spin_unlock(&ss->lock);
	return !closed;
}

/*
 * Most bytes that one call of smbdirect may move: it waits for ever for more
 * credits than there are, and if the send queue cannot take all requests it
 * frees memory that those already taken still use.
 */
static size_t sdsock_transfer_size(const struct smbdirect_socket *sc, bool reading)
{
	size_t sge = max(1U, reading ? sc->ib.qp->max_read_sge : sc->ib.qp->max_write_sge);
	size_t pages = min3(sge * sc->rw_io.credits.max,
			    sc->rw_io.credits.num_pages * sc->rw_io.credits.max,
			    (size_t)SDSOCK_MAX_PAGES);

	/* one less, for memory that does not begin with a page; credits.max is above 1 */
	return min_t(size_t, (pages - 1) * PAGE_SIZE, sc->parameters.max_read_write_size);
}

static int sdsock_transfer(struct sdsock *ss, struct sdsock_op *op)
{
	struct smbdirect_socket *sc = ss->sc;
	size_t most = sdsock_transfer_size(sc, sdsock_is_read(op));
	u32 done = 0;
	int ret;

	for (u32 i = 0; i < op->count && done < op->length; i++) {
		u64 offset = le64_to_cpu(op->descriptors[i].offset);
		u32 left = min(le32_to_cpu(op->descriptors[i].length), op->length - done);

		while (left) {
			u32 n = min_t(size_t, left, most);
			struct smbdirect_buffer_descriptor_v1 v1 = {
				.offset = cpu_to_le64(offset),
				.token = op->descriptors[i].token,
				.length = cpu_to_le32(n),
			};

			ret = smbdirect_connection_rdma_xmit(sc, op->data + done, n, &v1,
							     sizeof(v1), sdsock_is_read(op));
			if (ret < 0)
				return ret == -ENOTCONN ? -ECONNRESET : ret;
			offset += n;
			done += n;
			left -= n;
		}
	}
	op->result.length = done;
	return 0;
}

void sdsock_rdma_work(struct work_struct *work)
{
	struct sdsock *ss = container_of(work, struct sdsock, rdma.work);
	struct sdsock_op *op;
	bool closed;
	int ret;

	for (;;) {
		spin_lock(&ss->lock);
		op = list_first_entry_or_null(&ss->rdma.waiting, struct sdsock_op, list);
		if (op)
			list_del(&op->list);
		closed = ss->tx.closed;
		spin_unlock(&ss->lock);
		if (!op)
			break;

		/* sdsock_stop_io() sets closed and flushes us before sc goes away */
		if (op->region) {
			ret = sdsock_end_region(ss, op->region);
			op->region = NULL;
		} else {
			ret = closed ? -ECONNRESET : sdsock_transfer(ss, op);
		}
		sdsock_complete_op(ss, op, ret);
	}
}

static int sdsock_submit_register(struct sdsock *ss, struct msghdr *msg,
				  const struct smbdirect_rdma_register *request)
{
	struct sdsock_op *op;
	int ret;

	if (request->flags & ~SMBDIRECT_RDMA_REMOTE_WRITE || request->reserved)
		return -EINVAL;
	if (!ss->active)
		return -EOPNOTSUPP;
	op = sdsock_new_op(ss, SMBDIRECT_RDMA_REGISTER, request->cookie, 0, 0);
	if (IS_ERR(op))
		return PTR_ERR(op);
	ret = sdsock_register_region(ss, msg, request->flags & SMBDIRECT_RDMA_REMOTE_WRITE,
				     &op->result.descriptor);
	if (ret) {
		sdsock_end_op(ss, op);
		return ret;
	}
	op->result.length = msg_data_left(msg);
	sdsock_complete_op(ss, op, 0);
	return 0;
}

static int sdsock_submit_deregister(struct sdsock *ss,
				    const struct smbdirect_rdma_deregister *request)
{
	struct sdsock_region *region;
	struct sdsock_op *op;
	int ret = -ENOENT;

	if (request->reserved)
		return -EINVAL;
	if (!ss->active)
		return -EOPNOTSUPP;
	op = sdsock_new_op(ss, SMBDIRECT_RDMA_DEREGISTER, request->cookie, 0, 0);
	if (IS_ERR(op))
		return PTR_ERR(op);
	/*
	 * A region leaves the list for the work alone. Once that is done no more,
	 * it is left to sdsock_free_regions(), for nothing here keeps the transport.
	 */
	mutex_lock(&ss->rdma.lock);
	region = sdsock_find_region(ss, request->token);
	if (region) {
		sdsock_take_region(ss, region);
		op->region = region;
		ret = sdsock_queue_op(ss, op) ? 0 : -ENOTCONN;
		if (ret) {
			op->region = NULL;
			sdsock_put_region_back(ss, region);
		}
	}
	mutex_unlock(&ss->rdma.lock);
	if (ret)
		sdsock_end_op(ss, op);
	return ret;
}

/* Do the descriptors hold @length bytes, and none of them wrap around? */
static int sdsock_check_descriptors(const struct smbdirect_descriptor_v1 *descriptors, u32 count,
				    u32 length)
{
	u64 end, total = 0;

	for (u32 i = 0; i < count; i++) {
		u32 len = le32_to_cpu(descriptors[i].length);

		if (!len || check_add_overflow(le64_to_cpu(descriptors[i].offset), len - 1, &end))
			return -EINVAL;
		total += len;
	}
	return total < length ? -EINVAL : 0;
}

static int sdsock_submit_transfer(struct sdsock *ss, struct msghdr *msg, u32 operation,
				  const struct smbdirect_rdma_transfer *request, size_t len)
{
	u32 count = request->count;
	struct sdsock_op *op;
	int ret;

	if (!count || count > SMBDIRECT_RDMA_MAX_DESCRIPTORS ||
	    len != struct_size(request, descriptors, count) || !request->length)
		return -EINVAL;
	if (msg_data_left(msg) != (operation == SMBDIRECT_RDMA_WRITE ? request->length : 0))
		return -EINVAL;
	ret = sdsock_check_descriptors(request->descriptors, count, request->length);
	if (ret)
		return ret;
	if (ss->active)
		return -EOPNOTSUPP;
	if (request->length > ss->agreed.max_read_write_size)
		return -EMSGSIZE;

	op = sdsock_new_op(ss, operation, request->cookie, request->length, count);
	if (IS_ERR(op))
		return PTR_ERR(op);
	memcpy(op->descriptors, request->descriptors, count * sizeof(*op->descriptors));
	if (operation == SMBDIRECT_RDMA_WRITE &&
	    !copy_from_iter_full(op->data, op->length, &msg->msg_iter)) {
		sdsock_end_op(ss, op);
		return -EFAULT;
	}
	if (!sdsock_queue_op(ss, op)) {
		sdsock_end_op(ss, op);
		return -ENOTCONN;
	}
	return 0;
}

static int sdsock_may_operate(struct sock *sk)
{
	if (READ_ONCE(sk->sk_err) || READ_ONCE(sk->sk_shutdown) & SEND_SHUTDOWN)
		return -EPIPE;
	/* pairs with sdsock_set_state(): what was agreed is there */
	return smp_load_acquire(&sk->sk_state) == TCP_ESTABLISHED ? 0 : -ENOTCONN;
}

/* sendmsg(MSG_OOB): begin an operation. Returns the bytes of the iovec it concerns. */
int sdsock_submit(struct sock *sk, struct msghdr *msg, size_t len)
{
	struct sdsock *ss = to_sdsock(sk);
	struct cmsghdr *cmsg, *found = NULL;
	size_t size;
	int ret;

	for_each_cmsghdr(cmsg, msg) {
		if (!CMSG_OK(msg, cmsg) || cmsg->cmsg_level != SOL_SMBDIRECT || found)
			return -EINVAL;
		found = cmsg;
	}
	if (!found)
		return -EOPNOTSUPP;	/* TCP's urgent data */
	ret = sdsock_may_operate(sk);
	if (ret)
		return ret;

	size = found->cmsg_len - sizeof(*found);
	switch ((u32)found->cmsg_type) {
	case SMBDIRECT_RDMA_REGISTER:
		if (size != sizeof(struct smbdirect_rdma_register))
			return -EINVAL;
		ret = sdsock_submit_register(ss, msg, CMSG_DATA(found));
		break;
	case SMBDIRECT_RDMA_DEREGISTER:
		if (size != sizeof(struct smbdirect_rdma_deregister) || len)
			return -EINVAL;
		ret = sdsock_submit_deregister(ss, CMSG_DATA(found));
		break;
	case SMBDIRECT_RDMA_READ:
	case SMBDIRECT_RDMA_WRITE:
		if (size < sizeof(struct smbdirect_rdma_transfer))
			return -EINVAL;
		ret = sdsock_submit_transfer(ss, msg, found->cmsg_type, CMSG_DATA(found), size);
		break;
	default:
		return -EINVAL;
	}
	return ret ?: len;
}

static struct sdsock_op *sdsock_first_result(struct sdsock *ss, size_t *ops)
{
	struct sdsock_op *op;

	spin_lock(&ss->lock);
	op = list_first_entry_or_null(&ss->rdma.done, struct sdsock_op, list);
	*ops = ss->rdma.ops;
	spin_unlock(&ss->lock);
	return op;
}

bool sdsock_has_result(struct sdsock *ss)
{
	return !list_empty_careful(&ss->rdma.done);
}

/* What the control buffer must have room for: 32-bit programs have a shorter header. */
static size_t sdsock_result_space(const struct msghdr *msg)
{
#ifdef CONFIG_COMPAT
	if (msg->msg_flags & MSG_CMSG_COMPAT)
		return sizeof(struct compat_cmsghdr) +
		       sizeof(struct smbdirect_rdma_completion);
#endif
	return CMSG_LEN(sizeof(struct smbdirect_rdma_completion));
}

/* Returns the bytes read by RDMA, or an error and keeps the result. */
static int sdsock_copy_result(const struct sdsock_op *op, struct msghdr *msg)
{
	size_t bytes = sdsock_is_read(op) ? op->result.length : 0;

	if (!msg->msg_control || msg->msg_controllen < sdsock_result_space(msg) ||
	    msg_data_left(msg) < bytes)
		return -EMSGSIZE;
	if (bytes && !copy_to_iter_full(op->data, bytes, &msg->msg_iter))
		return -EFAULT;
	if (put_cmsg(msg, SOL_SMBDIRECT, SMBDIRECT_RDMA_COMPLETION, sizeof(op->result),
		     (void *)&op->result))
		return -EFAULT;
	msg->msg_flags |= MSG_OOB;
	return bytes;
}

/* recvmsg(MSG_OOB): fetch the first result. */
int sdsock_collect(struct sock *sk, struct msghdr *msg, int flags)
{
	struct sdsock *ss = to_sdsock(sk);
	long timeo = sock_rcvtimeo(sk, flags & MSG_DONTWAIT);
	struct sdsock_op *op;
	size_t ops;
	int ret;

	if (mutex_lock_interruptible(&ss->rdma.reader))
		return sock_intr_errno(timeo);
	while (!(op = sdsock_first_result(ss, &ops))) {
		/* without an operation under way there is nothing to wait for */
		ret = !ops ? -EINVAL : !timeo ? -EAGAIN : 0;
		if (ret)
			goto out;
		mutex_unlock(&ss->rdma.reader);
		timeo = wait_event_interruptible_timeout(*sk_sleep(sk),
							 sdsock_has_result(ss) ||
							 !READ_ONCE(ss->rdma.ops), timeo);
		if (timeo < 0)
			return sock_intr_errno(sk->sk_rcvtimeo);
		if (mutex_lock_interruptible(&ss->rdma.reader))
			return sock_intr_errno(timeo);
	}
	ret = sdsock_copy_result(op, msg);
	if (ret >= 0 && !(flags & MSG_PEEK)) {
		spin_lock(&ss->lock);
		list_del(&op->list);
		spin_unlock(&ss->lock);
		sdsock_end_op(ss, op);
	}
out:
	mutex_unlock(&ss->rdma.reader);
	return ret;
}

/* The last user of the socket; all operations have been done. */
void sdsock_free_ops(struct sdsock *ss)
{
	struct sdsock_op *op, *next;

	WARN_ON_ONCE(!list_empty(&ss->rdma.waiting));
	list_for_each_entry_safe(op, next, &ss->rdma.done, list)
		sdsock_free_op(ss, op);
}

void sdsock_init_rdma(struct sdsock *ss)
{
	mutex_init(&ss->rdma.lock);
	mutex_init(&ss->rdma.reader);
	INIT_LIST_HEAD(&ss->rdma.regions);
	INIT_LIST_HEAD(&ss->rdma.waiting);
	INIT_LIST_HEAD(&ss->rdma.done);
	INIT_WORK(&ss->rdma.work, sdsock_rdma_work);
}
