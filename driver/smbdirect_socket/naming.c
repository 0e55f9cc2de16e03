// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Addresses: bind(), and what getsockname() and getpeername() will say.
 */
#include "sdsock.h"

#include <linux/bpf-cgroup.h>
#include <linux/inet.h>
#include <net/addrconf.h>
#include <net/inet_common.h>
#include <net/ip.h>

/*
 * Check a sockaddr from userspace and copy it. An IPv4-mapped address given to
 * an IPv6 socket becomes the IPv4 address, which is what rdma_cm understands.
 */
int sdsock_check_addr(struct sock *sk, struct sockaddr_unsized *addr, int len,
		      struct sockaddr_storage *out)
{
	const struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)addr;
	struct sockaddr_in *in4 = (struct sockaddr_in *)out;
	size_t size = sk->sk_family == AF_INET6 ? SIN6_LEN_RFC2133 : sizeof(*in4);

	if (len < (int)offsetofend(struct sockaddr, sa_family))
		return -EINVAL;
	if (addr->sa_family != sk->sk_family)
		return -EAFNOSUPPORT;
	if (len < (int)size)
		return -EINVAL;

	memset(out, 0, sizeof(*out));
	if (sk->sk_family == AF_INET6 && ipv6_addr_v4mapped(&in6->sin6_addr)) {
		if (sk->sk_ipv6only)
			return -ENETUNREACH;
		in4->sin_family = AF_INET;
		in4->sin_port = in6->sin6_port;
		in4->sin_addr.s_addr = in6->sin6_addr.s6_addr32[3];
		return 0;
	}
	if (sk->sk_family == AF_INET6)
		size = min_t(size_t, len, sizeof(struct sockaddr_in6));
	memcpy(out, addr, size);
	return 0;
}

static bool sdsock_is_loopback(const struct sockaddr_storage *addr)
{
	if (addr->ss_family == AF_INET)
		return ipv4_is_loopback(((const struct sockaddr_in *)addr)->sin_addr.s_addr);
	return ipv6_addr_loopback(&((const struct sockaddr_in6 *)addr)->sin6_addr);
}

static bool sdsock_is_multicast(const struct sockaddr_storage *addr)
{
	__be32 ipv4 = ((const struct sockaddr_in *)addr)->sin_addr.s_addr;

	if (addr->ss_family == AF_INET)
		return ipv4_is_multicast(ipv4) || ipv4_is_lbcast(ipv4);
	return ipv6_addr_is_multicast(&((const struct sockaddr_in6 *)addr)->sin6_addr);
}

/*
 * For an address that means "this computer" rdma_cm takes its first device, be it
 * another network namespace's; and a listener there hears all addresses.
 */
static int sdsock_check_local(const struct sockaddr_storage *addr)
{
	return sdsock_is_loopback(addr) || sdsock_is_multicast(addr) ? -EADDRNOTAVAIL : 0;
}

int sdsock_check_destination(const struct sockaddr_storage *addr)
{
	return inet_addr_is_any((struct sockaddr_storage *)addr) || sdsock_is_loopback(addr) ||
	       sdsock_is_multicast(addr) ? -ENETUNREACH : 0;
}

/* Who may serve SMB by TCP, on port 445, may by iWARP, on 5445, and nobody else. */
static int sdsock_check_port(struct sock *sk, const struct sockaddr_storage *addr)
{
	unsigned short port = ntohs(((const struct sockaddr_in *)addr)->sin_port);
	struct net *net = sock_net(sk);

	if (port == SDSOCK_IWARP_PORT)
		port = SDSOCK_SMB_PORT;
	if (port && inet_port_requires_bind_service(net, port) &&
	    !ns_capable(net->user_ns, CAP_NET_BIND_SERVICE))
		return -EACCES;
	return 0;
}

static void sdsock_set_local_addr(struct sock *sk, const struct sockaddr_storage *addr)
{
	const struct sockaddr_in *in4 = (const struct sockaddr_in *)addr;
	const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)addr;
	struct inet_sock *inet = inet_sk(sk);

	inet->inet_sport = in4->sin_port; /* at the same place in both */
	inet->inet_num = ntohs(inet->inet_sport);
	if (addr->ss_family == AF_INET) {
		inet->inet_saddr = in4->sin_addr.s_addr;
		inet->inet_rcv_saddr = in4->sin_addr.s_addr;
		if (sk->sk_family == AF_INET6)
			ipv6_addr_set_v4mapped(inet->inet_saddr, &sk->sk_v6_rcv_saddr);
	} else if (addr->ss_family == AF_INET6) {
		sk->sk_v6_rcv_saddr = in6->sin6_addr;
		if (ipv6_addr_type(&in6->sin6_addr) & IPV6_ADDR_LINKLOCAL)
			sk->sk_bound_dev_if = in6->sin6_scope_id;
	}
	if (sk->sk_family == AF_INET6)
		inet6_sk(sk)->saddr = sk->sk_v6_rcv_saddr;
}

void sdsock_set_peer_addr(struct sock *sk, const struct sockaddr_storage *addr)
{
	const struct sockaddr_in *in4 = (const struct sockaddr_in *)addr;
	const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)addr;
	struct inet_sock *inet = inet_sk(sk);

	inet->inet_dport = in4->sin_port;
	if (addr->ss_family == AF_INET) {
		inet->inet_daddr = in4->sin_addr.s_addr;
		if (sk->sk_family == AF_INET6)
			ipv6_addr_set_v4mapped(inet->inet_daddr, &sk->sk_v6_daddr);
	} else if (addr->ss_family == AF_INET6) {
		sk->sk_v6_daddr = in6->sin6_addr;
	}
}

/* Keep both names, for they outlive the transport. */
void sdsock_set_addrs(struct sdsock *ss)
{
	const struct rdma_addr *addr = &ss->sc->rdma.cm_id->route.addr;
	struct sock *sk = sdsock_sk(ss);

	sdsock_set_local_addr(sk, &addr->src_addr);
	if (sk->sk_state != TCP_CLOSE && sk->sk_state != TCP_LISTEN)
		sdsock_set_peer_addr(sk, &addr->dst_addr);
}

static int sdsock_bind_locked(struct sdsock *ss, struct sockaddr_storage *addr)
{
	struct sock *sk = sdsock_sk(ss);
	int ret;

	sock_owned_by_me(sk);
	if (ss->bound || sk->sk_state != TCP_CLOSE)
		return -EINVAL;
	ret = sdsock_open_transport(ss);
	if (ret)
		return ret;
	ret = sdsock_bind_transport(ss, addr);
	if (ret) {
		sdsock_drop_transport(ss);
		return ret;
	}
	sdsock_set_addrs(ss);
	/* with the port that rdma_cm chose, if it was left to it */
	ss->bound_addr = ss->sc->rdma.cm_id->route.addr.src_addr;
	ss->bound = true;
	return 0;
}

int sdsock_autobind(struct sdsock *ss)
{
	struct sockaddr_storage any = { .ss_family = sdsock_sk(ss)->sk_family };

	return ss->bound ? 0 : sdsock_bind_locked(ss, &any);
}

/* A control group's programs may refuse an address, or put another in its place. */
static int sdsock_bind_hook(struct sock *sk, struct sockaddr_unsized *addr, int *len, u32 *flags)
{
	if (sk->sk_family == AF_INET)
		return BPF_CGROUP_RUN_PROG_INET_BIND_LOCK(sk, addr, len, CGROUP_INET4_BIND, flags);
	return BPF_CGROUP_RUN_PROG_INET_BIND_LOCK(sk, addr, len, CGROUP_INET6_BIND, flags);
}

static int sdsock_post_bind_hook(struct sock *sk)
{
	if (sk->sk_family == AF_INET)
		return BPF_CGROUP_RUN_PROG_INET4_POST_BIND(sk);
	return BPF_CGROUP_RUN_PROG_INET6_POST_BIND(sk);
}

int sdsock_connect_hook(struct sock *sk, struct sockaddr_unsized *addr, int *len)
{
	if (sk->sk_family == AF_INET)
		return BPF_CGROUP_RUN_PROG_INET4_CONNECT_LOCK(sk, addr, len);
	return BPF_CGROUP_RUN_PROG_INET6_CONNECT_LOCK(sk, addr, len);
}

static void sdsock_unbind(struct sdsock *ss)
{
	struct sockaddr_storage none = { .ss_family = sdsock_sk(ss)->sk_family };

	sdsock_drop_transport(ss);
	sdsock_set_local_addr(sdsock_sk(ss), &none);
	ss->bound = false;
}

int sdsock_bind(struct socket *sock, struct sockaddr_unsized *addr, int len)
{
	struct sock *sk = sock->sk;
	struct sockaddr_storage wanted;
	u32 flags = 0;
	int ret;

	/* so that the programs see whole addresses only */
	ret = sdsock_check_addr(sk, addr, len, &wanted) ?:
	      sdsock_bind_hook(sk, addr, &len, &flags) ?:
	      sdsock_check_addr(sk, addr, len, &wanted) ?:
	      sdsock_check_local(&wanted);
	if (!ret && !(flags & BIND_NO_CAP_NET_BIND_SERVICE))
		ret = sdsock_check_port(sk, &wanted);
	if (ret)
		return ret;

	lock_sock(sk);
	ret = sdsock_bind_locked(to_sdsock(sk), &wanted);
	if (!ret) {
		ret = sdsock_post_bind_hook(sk);
		if (ret)
			sdsock_unbind(to_sdsock(sk));
	}
	release_sock(sk);
	return ret;
}
