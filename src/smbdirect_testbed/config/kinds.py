"""Names of carriers and servers, which packages other than this one may add to.

Whether there is such a carrier or server is known where they are: see
:mod:`smbdirect_testbed.carriers.table` and :mod:`smbdirect_testbed.smb.servers`.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema


class Kind(str):
    """A name; there is one object for each, so that ``is`` compares them as it does enums."""

    __slots__ = ()
    _all: ClassVar[dict[tuple[type[Kind], str], Any]] = {}

    def __new__(cls, name: str) -> Self:
        found: Self = cls._all.setdefault((cls, str(name)), super().__new__(cls, name))
        return found

    @property
    def value(self) -> str:
        """The name, as a plain string."""
        return str(self)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        name = core_schema.str_schema(pattern=r"^[a-z][a-z0-9-]*$")
        return core_schema.no_info_after_validator_function(cls, name)


class CarrierKind(Kind):
    """What provides a running kernel.

    ::

        if environment.spec.carrier is CarrierKind.LOCAL:
            pytest.skip("it would panic this computer")
    """

    VM: ClassVar[CarrierKind]
    UML: ClassVar[CarrierKind]
    LOCAL: ClassVar[CarrierKind]


CarrierKind.VM = CarrierKind("vm")
CarrierKind.UML = CarrierKind("uml")
CarrierKind.LOCAL = CarrierKind("local")


class ServerKind(Kind):
    """An SMB server implementation.

    ::

        if running := environment.server(ServerKind.SMBD):
            running.check()
    """

    SMBD: ClassVar[ServerKind]
    KSMBD: ClassVar[ServerKind]


ServerKind.SMBD = ServerKind("smbd")
ServerKind.KSMBD = ServerKind("ksmbd")
