"""The fixtures that scenarios use.

``docs/scenarios.md`` lists them by the first line and the example of their docstrings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from smbdirect_testbed.config.spec import Role, ServerKind
from smbdirect_testbed.evidence.capture import Wire
from smbdirect_testbed.evidence.kmemleak import LeakDetectors
from smbdirect_testbed.lib.errors import MachineDied, ProvisionError
from smbdirect_testbed.plugin.run_context import RunContext
from smbdirect_testbed.plugin.smbtorture import Torture
from smbdirect_testbed.smb.ksmbd import Ksmbd, running_ksmbd
from smbdirect_testbed.smb.smbclient import SmbClient

if TYPE_CHECKING:
    from smbdirect_testbed.environment.environment import Environment
    from smbdirect_testbed.machine.host import Host
    from smbdirect_testbed.machine.loaded_driver import LoadedDriver
    from smbdirect_testbed.smb.smbd import Smbd


class Fixtures:
    """Plugged into pytest next to :class:`RunPlugin`, with the same context."""

    def __init__(self, context: RunContext) -> None:
        self._run = context

    @pytest.fixture(scope="session")
    def environment(self) -> Environment:
        """The environment that this run was given: its spec, machines, hosts, servers.

        ::

            assert environment.hosts["client"].machine is environment.machines["machine"]
        """
        return self._run.environment

    @pytest.fixture(scope="session")
    def server(self, environment: Environment) -> Host:
        """The host that smbd runs on, or the first with the role of a server.

        ::

            assert server.testinfra.socket(f"tcp://{server.ipv4}:445").is_listening
        """
        return environment.host_of(ServerKind.SMBD) or _host(environment, Role.SERVER)

    @pytest.fixture(scope="session")
    def client(self, environment: Environment) -> Host:
        """The first host with the role of a client.

        ::

            assert "ACTIVE" in client.run(["rdma", "link", "show"]).stdout
        """
        return _host(environment, Role.CLIENT)

    @pytest.fixture(scope="session")
    def driver(self, environment: Environment) -> LoadedDriver:
        """The driver's modules in the machine that smbd is on, or in the first.

        ::

            assert "smbdirect" in driver.loaded()
        """
        return environment.driver

    @pytest.fixture(scope="session")
    def smbd(self, environment: Environment) -> Smbd:
        """The running smbd; the scenario is skipped in an environment without one.

        ::

            smbd.wait_until_idle()
        """
        if server := environment.server(ServerKind.SMBD):
            return cast("Smbd", server)
        pytest.skip(f"environment {environment.spec.name} has no smbd")

    @pytest.fixture(scope="module")
    def ksmbd(self, environment: Environment) -> Iterator[Ksmbd]:
        """ksmbd, running for one file's scenarios; skipped in an environment without one.

        ::

            assert Transport.SMBDIRECT in ksmbd.transports
        """
        spec = next((s for s in environment.spec.servers if s.kind is ServerKind.KSMBD), None)
        if spec is None:
            pytest.skip(f"environment {environment.spec.name} has no ksmbd")
        host = environment.hosts[spec.host]
        with running_ksmbd(host, environment.driver, spec.transports) as running:
            yield running

    @pytest.fixture(scope="session")
    def smbclient(self, client: Host, smbd: Smbd) -> SmbClient:
        """Samba's smbclient on the client, for smbd's share.

        ::

            assert "blocks available" in smbclient.run("ls", transports=[Transport.TCP]).stdout
        """
        return SmbClient(client, smbd)

    @pytest.fixture(scope="session", autouse=True)
    def _provenance(
        self, environment: Environment, record_testsuite_property: Callable[[str, object], None]
    ) -> None:
        for name, value in environment.facts().items():
            record_testsuite_property(name, value)

    @pytest.fixture(scope="session")
    def _leak_detectors(self, environment: Environment) -> Iterator[LeakDetectors]:
        """Of the machines whose kernel looks for leaks; at the run's end it looks at everything."""
        detectors = LeakDetectors(environment.machines.values())
        yield detectors
        with suppress(MachineDied):
            for detector in detectors.found:
                detector.scan_all()

    @pytest.fixture(scope="module", autouse=True)
    def _leaks_of_a_file(self, _leak_detectors: LeakDetectors) -> Iterator[None]:
        """At the end of each file, leaks are looked for: they fail the scenario that was last."""
        yield
        with suppress(MachineDied):
            for detector in _leak_detectors.found:
                detector.scan()

    @pytest.fixture
    def leaks_looked_for(self, _leak_detectors: LeakDetectors) -> Iterator[None]:
        """At the end of this scenario, kmemleak looks for leaks; skipped where the kernel cannot.

        ::

            pytestmark = pytest.mark.usefixtures("leaks_looked_for")
        """
        if not _leak_detectors.found:
            pytest.skip("no machine's kernel looks for leaks: use an environment with kmemleak")
        yield
        for detector in _leak_detectors.found:
            detector.scan_all()

    @pytest.fixture
    def wire(self) -> Wire:
        """What goes over the client's links during this scenario.

        ::

            wire.expect(Transport.SMBDIRECT)
        """
        if wire := self._run.evidence.wire():
            return wire
        raise ProvisionError("nothing is captured: no client with a link, or the capture was lost")

    @pytest.fixture
    def scenario_log(self, request: pytest.FixtureRequest) -> Path:
        """A directory for what this scenario wants to keep; the report shows its ``.log`` files.

        ::

            (scenario_log / "links.log").write_text(client.run(["rdma", "link"]).stdout)
        """
        directory = self._run.scenario_directory(request.node.nodeid)
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    @pytest.fixture
    def torture(
        self, request: pytest.FixtureRequest, smbd: Smbd, client: Host, scenario_log: Path
    ) -> Torture:
        """smbtorture on the client against smbd; each of its tests is a result of its own.

        ::

            torture.run("smb2.read", Transport.SMBDIRECT)
        """
        return Torture(request.node, client, smbd, scenario_log, self._run.notes)


def _host(environment: Environment, role: Role) -> Host:
    try:
        return environment.host(role)
    except ProvisionError as e:
        pytest.skip(e.message)
