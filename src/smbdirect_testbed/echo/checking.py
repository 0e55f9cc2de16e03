"""What a check is, and what it works with."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from smbdirect_testbed.echo.client import EchoClient, Refused, WrongAnswer
from smbdirect_testbed.echo.connection import Disconnected, Silence, Transport, connect, frame
from smbdirect_testbed.echo.protocol import (
    Status,
    first_difference,
    parse_reply,
    pattern,
    status_name,
)

if TYPE_CHECKING:
    from smbdirect_testbed.smbdirect import ConnectionParameters

_CANARY = 0xA5


class CheckFailed(AssertionError):
    """A server, or the wire, did what it must not."""


class Outcome(StrEnum):
    """How a check ended; the words are those of the testbed's results."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """How one check ended.

    :param message: why it failed or was skipped
    """

    name: str
    transport: Transport
    outcome: Outcome
    seconds: float
    message: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """The server under test.

    :param patience: seconds without progress after which a connection is given up
    :param parameters: of SMB-Direct connections; None for the module's defaults
    """

    address: str
    port: int
    transport: Transport
    patience: float = 30.0
    parameters: ConnectionParameters | None = None


class Context:
    """What a check works with: connections, and data that are different each time."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.random = random.Random()
        self._shared: EchoClient | None = None

    @property
    def client(self) -> EchoClient:
        """A client that well-behaved checks share: a connection costs much under emulation."""
        if self._shared is None:
            self._shared = self._connect()
        return self._shared

    @contextmanager
    def fresh(self) -> Iterator[EchoClient]:
        """A client with a connection of its own."""
        with self._connect() as client:
            yield client

    def drop(self) -> None:
        """Close the shared connection; the next check gets a new one."""
        if self._shared:
            self._shared.close()
            self._shared = None

    def nonce(self) -> int:
        """A number that no other payload has, in all likelihood."""
        return self.random.getrandbits(64)

    def payload(self, size: int) -> bytes:
        """Data whose every word tells where it belongs."""
        return pattern(self.nonce(), size)

    def still_serves(self, client: EchoClient | None = None) -> None:
        """Echo on a connection, or on a new one: the server lives."""
        if client is None:
            with self.fresh() as new:
                self.still_serves(new)
            return
        data = self.payload(100)
        same(client.echo(data), data, "the echo that follows")

    def refused(self, request: bytes, *statuses: Status) -> None:
        """A request on the shared connection gets an error status, and the server goes on."""
        client = self.client
        client.connection.send(request)
        reply = parse_reply(client.connection.receive(1 << 20))
        names = " or ".join(s.name for s in statuses)
        require(
            reply.status in statuses, f"answered {status_name(reply.status)} instead of {names}"
        )
        require(not reply.body, f"{len(reply.body)} bytes after an error status")
        wanted = int.from_bytes(request[4:8], "little")
        require(reply.message_id == wanted, f"a reply to {reply.message_id} instead of {wanted}")
        self.still_serves(client)

    def hung_up(self, stream: bytes) -> None:
        """Bytes on a new connection make the server close it, without a word, and no more."""
        with self.fresh() as client:
            client.connection.send_raw(stream)
            try:
                answer = client.connection.receive(1 << 20)
            except Silence:
                raise
            except Disconnected:
                answer = None
            require(answer is None, f"an answer of {len(answer or b'')} bytes to nonsense")
        self.still_serves()

    def hung_up_on_frame(self, body: bytes) -> None:
        """The same for one frame."""
        self.hung_up(frame(body))

    def _connect(self) -> EchoClient:
        t = self.target
        return EchoClient(
            connect(t.address, t.port, t.transport, patience=t.patience, parameters=t.parameters)
        )


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must be so.

    :param rdma: whether it needs a transport with RDMA
    """

    name: str
    about: str
    run: Callable[[Context], None]
    rdma: bool


class Checks:
    """A list of checks that fills itself: ``@CHECKS.add()`` before a function.

    The function's name is the check's, its docstring says what is checked.
    """

    def __init__(self) -> None:
        self.all: list[Check] = []

    def add(self, *, rdma: bool = False) -> Callable[[Callable[[Context], None]], None]:
        """Put a function on the list."""

        def put(function: Callable[[Context], None]) -> None:
            about = (function.__doc__ or "").partition("\n")[0]
            self.all.append(Check(function.__name__, about, function, rdma))

        return put


def require(condition: bool, message: str) -> None:
    """Fail the check unless the condition holds."""
    if not condition:
        raise CheckFailed(message)


def same(
    got: bytes | memoryview | bytearray, wanted: bytes | memoryview | bytearray, what: str
) -> None:
    """Fail the check unless payloads are equal; says where they are not."""
    if difference := first_difference(memoryview(got), memoryview(wanted)):
        raise CheckFailed(f"{what}: {difference}")


def canaries(size: int) -> bytearray:
    """Memory whose bytes all have one value, to see what was written to."""
    return bytearray([_CANARY]) * size


def untouched(buffer: bytearray | memoryview, what: str) -> None:
    """Fail the check unless memory is as :func:`canaries` made it."""
    same(buffer, bytes([_CANARY]) * len(buffer), what)


def run_check(check: Check, context: Context) -> CheckResult:
    """Run a check to its end; whatever it raises is a result."""
    begun = time.monotonic()
    outcome, message = Outcome.PASSED, ""
    if check.rdma and context.target.transport is not Transport.SMBDIRECT:
        outcome, message = Outcome.SKIPPED, f"there is no RDMA over {context.target.transport}"
    else:
        try:
            check.run(context)
        except (CheckFailed, Refused, WrongAnswer, Disconnected, OSError) as e:
            outcome, message = Outcome.FAILED, _explained(e)
        except Exception as e:
            outcome, message = Outcome.FAILED, f"{type(e).__name__}: {e}"
        if outcome is Outcome.FAILED:
            with contextlib.suppress(OSError):
                context.drop()
    seconds = time.monotonic() - begun
    return CheckResult(check.name, context.target.transport, outcome, seconds, message)


def _explained(error: Exception) -> str:
    return f"connection lost: {error}" if isinstance(error, Disconnected) else str(error)
