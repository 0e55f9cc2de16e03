// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * LD_PRELOAD library: a TCP socket that is bound or connected to one of the
 * ports in $SMBDIRECT_PORTS (comma-separated, default 5445) becomes an
 * SMB-Direct socket (protocol 257) under the same file descriptor. Programs
 * learn the port only at bind() or connect(), hence the exchange there and not
 * in socket(). $SMBDIRECT_DEBUG=1 reports each exchange on standard error.
 *
 * A connect() that does not block is waited for after all, for up to
 * $SMBDIRECT_CONNECT_WAIT milliseconds (default 4000; 0 for not at all). Samba
 * starts the next transport of its list after 5 ms and takes whichever connects
 * first: TCP would win against the negotiation of SMB-Direct, whatever the list
 * says. The default is below the 5 s that Samba gives a connection.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "smbdirect_socket.h"

#ifndef SO_BUF_LOCK
#define SO_BUF_LOCK 72
#endif
/* the kernel's SOCK_SNDBUF_LOCK and SOCK_RCVBUF_LOCK */
#define SNDBUF_CHOSEN 1
#define RCVBUF_CHOSEN 2
#define DEFAULT_PORTS "5445"
#define DEFAULT_CONNECT_WAIT 4000

static int (*real_bind)(int, const struct sockaddr *, socklen_t);
static int (*real_connect)(int, const struct sockaddr *, socklen_t);
static int (*real_getsockopt)(int, int, int, void *, socklen_t *);
static int (*real_setsockopt)(int, int, int, const void *, socklen_t);

/* Before main(), and before any thread: the wrappers need no lock. */
__attribute__((constructor)) static void resolve(void)
{
	real_bind = dlsym(RTLD_NEXT, "bind");
	real_connect = dlsym(RTLD_NEXT, "connect");
	real_getsockopt = dlsym(RTLD_NEXT, "getsockopt");
	real_setsockopt = dlsym(RTLD_NEXT, "setsockopt");
}

/* A constructor of another library may use sockets before ours has run. */
static void ensure_resolved(void)
{
	if (!real_setsockopt)
		resolve();
}

__attribute__((format(printf, 1, 2))) static void debug(const char *format, ...)
{
	const char *wanted = getenv("SMBDIRECT_DEBUG");
	char line[256];
	va_list args;
	int length;

	if (!wanted || !*wanted || *wanted == '0')
		return;
	length = snprintf(line, sizeof(line), "smbdirect-preload[%d]: ", (int)getpid());
	va_start(args, format);
	vsnprintf(line + length, sizeof(line) - length, format, args);
	va_end(args);
	dprintf(STDERR_FILENO, "%s\n", line);
}

static bool port_listed(unsigned int port)
{
	const char *list = getenv("SMBDIRECT_PORTS");
	char *end;

	if (!list || !*list)
		list = DEFAULT_PORTS;
	while (*list) {
		if (strtoul(list, &end, 10) == port && (*end == ',' || !*end) && end != list)
			return true;
		list += strcspn(list, ",");
		list += *list == ',';
	}
	return false;
}

/* The port of an IPv4 or IPv6 address, 0 of any other */
static unsigned int port_of(const struct sockaddr *addr, socklen_t length)
{
	if (addr && addr->sa_family == AF_INET && length >= sizeof(struct sockaddr_in))
		return ntohs(((const struct sockaddr_in *)addr)->sin_port);
	/* 24: a sockaddr_in6 may lack its scope */
	if (addr && addr->sa_family == AF_INET6 && length >= 24)
		return ntohs(((const struct sockaddr_in6 *)addr)->sin6_port);
	return 0;
}

/* A number that SOL_SOCKET knows about a socket, or -1 */
static int number(int fd, int option)
{
	socklen_t length = sizeof(int);
	int value;

	return real_getsockopt(fd, SOL_SOCKET, option, &value, &length) ? -1 : value;
}

static void copy_option(int from, int to, int level, int option)
{
	char value[64];
	socklen_t length = sizeof(value);

	if (!real_getsockopt(from, level, option, value, &length) && length)
		real_setsockopt(to, level, option, value, length);
}

static void copy_buffer_size(int from, int to, int option)
{
	int half = number(from, option) / 2; /* the kernel doubles it */

	real_setsockopt(to, SOL_SOCKET, option, &half, sizeof(half));
}

/* Who gets SIGIO and SIGURG, and which signal instead; epoll's list cannot be read. */
static void copy_owner(int from, int to)
{
	struct f_owner_ex owner;

	if (!fcntl(from, F_GETOWN_EX, &owner) && owner.pid)
		fcntl(to, F_SETOWN_EX, &owner);
	fcntl(to, F_SETSIG, fcntl(from, F_GETSIG));
}

/* Take over what the program has set on the TCP socket so far. */
static void copy_settings(int from, int to, int family)
{
	static const int options[] = {
		SO_REUSEADDR, SO_REUSEPORT, SO_KEEPALIVE, SO_LINGER, SO_RCVTIMEO,
		SO_SNDTIMEO, SO_RCVLOWAT, SO_PRIORITY, SO_BINDTODEVICE, SO_MARK, SO_OOBINLINE,
	};
	int chosen = number(from, SO_BUF_LOCK); /* -1, all bits, if the kernel is too old */
	struct sockaddr_storage name;
	socklen_t length = sizeof(name);

	for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++)
		copy_option(from, to, SOL_SOCKET, options[i]);
	/* TCP's own sizes adapt themselves and say nothing: only what was chosen */
	if (chosen & SNDBUF_CHOSEN)
		copy_buffer_size(from, to, SO_SNDBUF);
	if (chosen & RCVBUF_CHOSEN)
		copy_buffer_size(from, to, SO_RCVBUF);
	if (family == AF_INET6)
		copy_option(from, to, IPPROTO_IPV6, IPV6_V6ONLY);
	fcntl(to, F_SETFL, fcntl(from, F_GETFL));
	copy_owner(from, to);

	/* a client that chose its own address; TCP's port means nothing here */
	if (!getsockname(from, (struct sockaddr *)&name, &length) &&
	    port_of((struct sockaddr *)&name, length)) {
		if (name.ss_family == AF_INET)
			((struct sockaddr_in *)&name)->sin_port = 0;
		else
			((struct sockaddr_in6 *)&name)->sin6_port = 0;
		if (real_bind(to, (struct sockaddr *)&name, length))
			debug("fd %d: cannot keep the local address: %s", from, strerror(errno));
	}
}

/* Returns -1 with errno set if the socket should have been exchanged and was not. */
static int exchange(int fd, const struct sockaddr *addr, socklen_t length)
{
	unsigned int port = port_of(addr, length);
	int family, flags, made;

	ensure_resolved();
	if (!port || !port_listed(port) || number(fd, SO_PROTOCOL) != IPPROTO_TCP ||
	    number(fd, SO_TYPE) != SOCK_STREAM)
		return 0;
	family = number(fd, SO_DOMAIN);
	flags = fcntl(fd, F_GETFD);
	made = socket(family, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_SMBDIRECT);
	if (made < 0) {
		debug("port %u: no SMB-Direct socket: %s", port, strerror(errno));
		return -1;
	}
	copy_settings(fd, made, family);
	if (dup3(made, fd, flags & FD_CLOEXEC ? O_CLOEXEC : 0) < 0) {
		int saved = errno;

		close(made);
		errno = saved;
		return -1;
	}
	close(made);
	debug("fd %d: TCP becomes SMB-Direct for port %u", fd, port);
	return 0;
}

int bind(int fd, const struct sockaddr *addr, socklen_t length)
{
	return exchange(fd, addr, length) ? -1 : real_bind(fd, addr, length);
}

/* Returns what a blocking connect() would have, or EINPROGRESS after all. */
static int finish_connect(int fd)
{
	const char *setting = getenv("SMBDIRECT_CONNECT_WAIT");
	int wait = setting && *setting ? atoi(setting) : DEFAULT_CONNECT_WAIT;
	struct pollfd poll_fd = { .fd = fd, .events = POLLOUT };
	int error;

	if (wait <= 0 || poll(&poll_fd, 1, wait) <= 0) {
		errno = EINPROGRESS;
		return -1;
	}
	error = number(fd, SO_ERROR);
	if (error > 0)
		errno = error;
	debug("fd %d: connect: %s", fd, error > 0 ? strerror(error) : "done");
	return error ? -1 : 0;
}

int connect(int fd, const struct sockaddr *addr, socklen_t length)
{
	int ret;

	if (exchange(fd, addr, length))
		return -1;
	ret = real_connect(fd, addr, length);
	if (ret && errno == EINPROGRESS && port_listed(port_of(addr, length)) &&
	    number(fd, SO_PROTOCOL) == IPPROTO_SMBDIRECT)
		ret = finish_connect(fd);
	return ret;
}

/* Options below the socket level tune TCP and IP: there is nothing to tune here. */
static bool pointless(int fd, int level)
{
	int saved = errno;
	bool yes = (saved == ENOPROTOOPT || saved == EOPNOTSUPP) &&
		   (level == IPPROTO_TCP || level == IPPROTO_IP || level == IPPROTO_IPV6) &&
		   number(fd, SO_PROTOCOL) == IPPROTO_SMBDIRECT;

	errno = saved;
	return yes;
}

int setsockopt(int fd, int level, int option, const void *value, socklen_t length)
{
	int ret;

	ensure_resolved();
	ret = real_setsockopt(fd, level, option, value, length);
	return ret && pointless(fd, level) ? 0 : ret;
}

/* Zeroes for the caller; the kernel finds out whether he may have them there. */
static int clear(void *value, size_t length)
{
	static const char zeroes[4096];	/* what a pipe takes at once */
	ssize_t done = -1;
	int ends[2];

	if (length > sizeof(zeroes)) {
		errno = EINVAL;
		return -1;
	}
	if (!length)
		return 0;
	if (pipe2(ends, O_CLOEXEC))
		return -1;
	if (write(ends[1], zeroes, length) == (ssize_t)length)
		done = read(ends[0], value, length);
	for (int i = 0, saved = errno; i < 2; i++) {
		close(ends[i]);
		errno = saved;
	}
	return done == (ssize_t)length ? 0 : -1;
}

int getsockopt(int fd, int level, int option, void *value, socklen_t *length)
{
	int ret;

	ensure_resolved();
	ret = real_getsockopt(fd, level, option, value, length);
	/* the module reads the length before it refuses: that pointer is good */
	return ret && pointless(fd, level) ? clear(value, *length) : ret;
}
