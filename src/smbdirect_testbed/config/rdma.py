"""Types of soft-RDMA: one row each, which everything else that depends on the type reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self


@dataclass(frozen=True)
class RdmaTraits:
    """What the testbed has to know of a type of soft-RDMA.

    :param module: the kernel module of its devices
    :param gids: GID table entries of an interface with one IPv4, one IPv6 and one link-local
        address
    :param ksmbd_port: the RDMA port on which ksmbd listens on such a device
    :param source: the directory of a kernel tree that the module is built from along with the
        driver, for a type that the distribution's kernels lack; None for the kernel's own module
    :param option: the kernel option that switches on what is in ``source``
    :param settle: seconds in which what connections leave behind goes by itself
    :param sysctls: values by names below ``/proc/sys``, for hosts that have such a device
    """

    module: str
    gids: int
    ksmbd_port: int
    source: str | None = None
    option: str | None = None
    settle: float = 4.0
    sysctls: Mapping[str, str] = field(default_factory=dict)


class RdmaType(StrEnum):
    """The soft-RDMA driver behind an RDMA link, as the kernel and environment files name it::

        RdmaType.RXE.value == "rxe"
        RdmaType.RXE.traits.module == "rdma_rxe"

    Source of the ports: InfiniBand and RoCE have RDMA ports of their own, so ksmbd has SMB's there;
    iWARP's are TCP's, so it has SMB-Direct's (``transport_rdma.c`` of ksmbd).
    """

    traits: RdmaTraits

    RXE = "rxe", RdmaTraits(module="rdma_rxe", gids=3, ksmbd_port=445)
    SIW = (
        "siw",
        RdmaTraits(
            module="siw",
            gids=1,  # iWARP has one for the interface
            ksmbd_port=5445,
            source="drivers/infiniband/sw/siw",
            option="RDMA_SIW",
            settle=15.0,  # it keeps a connection for 10 s
            # siw binds TCP to the port that rdma_cm chose, and that may be one of a TCP connection
            # in TIME_WAIT: to connect then fails with EADDRINUSE.
            sysctls={"net/ipv4/tcp_max_tw_buckets": "0"},
        ),
    )

    def __new__(cls, name: str, traits: RdmaTraits) -> Self:
        member = str.__new__(cls, name)
        member._value_ = name
        member.traits = traits
        return member


BUILT = {t.traits.source: t.traits for t in RdmaType if t.traits.source}
"""The types that are built along with the driver, by their directory of a kernel tree."""
