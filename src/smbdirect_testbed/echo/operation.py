"""The operations that are measured."""

from __future__ import annotations

from enum import StrEnum


class Operation(StrEnum):
    """What is measured."""

    ECHO = "echo"
    """Data to the server and back."""
    SEND = "send"
    """Data to the server; its first 8 bytes come back."""
    RECEIVE = "receive"
    """Data from the server, for a request of a sixteenth of the size."""
    RDMA_READ = "rdma-read"
    """Data from the server, which writes them into our memory."""
    RDMA_WRITE = "rdma-write"
    """Data to the server, which reads them from our memory."""

    @property
    def rdma(self) -> bool:
        """Whether it needs RDMA."""
        return self in (Operation.RDMA_READ, Operation.RDMA_WRITE)

    @property
    def ways(self) -> int:
        """How many times the data travel."""
        return 2 if self is Operation.ECHO else 1
