"""A run in the first of two environments whose machines start here.

What one carrier lacks, another may do without. So a user who named no environment gets a verdict
wherever one of them works, and both reasons where neither does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from smbdirect_testbed.lib.errors import CarrierFailed, ProvisionError, TestbedError, UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class Attempt:
    """How a run in one environment goes along with a run in another.

    :param last: no other environment is tried after this one
    :param before: why the one before could not be started: its name, and the reason
    """

    last: bool = True
    before: str = ""

    @property
    def raises(self) -> tuple[type[TestbedError], ...]:
        """What ends the run without a verdict."""
        return (UsageError,) if self.last else (UsageError, CarrierFailed)

    @property
    def notes(self) -> list[str]:
        """What the results say of it."""
        return [f"no machine could be started in {self.before}"] if self.before else []

    @contextmanager
    def of(self, name: str, context: AbstractContextManager[T]) -> Iterator[T]:
        """The context; if entering it fails, the error has the earlier reason, too.

        :param name: of the environment
        """
        with ExitStack() as stack:
            try:
                value = stack.enter_context(context)
            except UsageError:
                raise
            except ProvisionError as e:
                if not self.before:
                    raise
                raise ProvisionError(
                    f"no carrier works here: {self.before}; {name}: {e.message}",
                    hint=e.hint,
                    detail=e.detail,
                ) from e
            yield value


ONLY = Attempt()
"""Of an environment that the user named."""


@contextmanager
def failing(error: TestbedError) -> Iterator[NoReturn]:
    """What fails to be entered, for an error that came before."""
    raise error
    yield
