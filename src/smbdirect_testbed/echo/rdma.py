"""RDMA by userspace, as far as the suite needs it; over TCP nothing of this is ever called."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from smbdirect_testbed.echo.connection import Connection
from smbdirect_testbed.echo.protocol import Descriptor

if TYPE_CHECKING:
    from smbdirect_testbed.smbdirect import Registration

Buffer = bytearray | memoryview


def write_to_peer(connection: Connection, descriptors: Sequence[Descriptor], data: Buffer) -> int:
    """Put local memory into the peer's; bytes done.

    :raises OSError: the peer's descriptors are no good, or the connection is gone
    """
    from smbdirect_testbed import smbdirect

    theirs = [smbdirect.Descriptor(*d) for d in descriptors]
    return smbdirect.rdma_writev(connection.socket, theirs, [memoryview(data)])


def read_from_peer(connection: Connection, descriptors: Sequence[Descriptor], data: Buffer) -> int:
    """Fill local memory from the peer's; bytes done.

    :raises OSError: the peer's descriptors are no good, or the connection is gone
    """
    from smbdirect_testbed import smbdirect

    theirs = [smbdirect.Descriptor(*d) for d in descriptors]
    return smbdirect.rdma_readv(connection.socket, theirs, [memoryview(data)])


def most_bytes(connection: Connection) -> int:
    """The most bytes that one transfer may have.

    :raises OSError: the kernel does not say
    """
    from smbdirect_testbed import smbdirect

    return smbdirect.connection_parameters(connection.socket).max_read_write_size


def send_invalidating(connection: Connection, frame: bytes, token: int) -> None:
    """Send one whole frame that invalidates a token of the peer's.

    :raises OSError: that failed
    """
    from smbdirect_testbed import smbdirect

    smbdirect.send_with_invalidate(connection.socket, frame, token)


def register(connection: Connection, buffer: Buffer, *, remote_write: bool) -> Registration:
    """Open memory to the peer, either for its writing or for its reading.

    :raises OSError: that failed
    """
    from smbdirect_testbed import smbdirect

    return smbdirect.rdma_register(connection.socket, buffer, remote_write=remote_write)


@contextmanager
def registered(
    connection: Connection, buffer: Buffer, *, remote_write: bool
) -> Iterator[tuple[Descriptor, ...]]:
    """Memory open to the peer while the context lasts; see :func:`register`."""
    with register(connection, buffer, remote_write=remote_write) as registration:
        yield ours(registration)


def ours(registration: Registration) -> tuple[Descriptor, ...]:
    """The descriptors of a registration, for a request."""
    return tuple(Descriptor(*d) for d in registration.descriptors)
