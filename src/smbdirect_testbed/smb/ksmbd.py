"""ksmbd: the kernel's SMB server. It can run together with smbd."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath

from smbdirect_testbed.config.spec import RdmaType, ServerKind, Transport
from smbdirect_testbed.lib.errors import ProvisionError
from smbdirect_testbed.machine.host import Host
from smbdirect_testbed.machine.loaded_driver import LoadedDriver
from smbdirect_testbed.smb.config import ksmbd_account_line, ksmbd_config
from smbdirect_testbed.smb.server import SmbServer, running
from smbdirect_testbed.smb.transports import SambaTransports, samba_transports

_TOOLS = PurePosixPath("/opt/ksmbd/usr/sbin")
_SHARE = PurePosixPath("/srv/ksmbd")
_PRIVATE = PurePosixPath("/run/ksmbd")
_READY_TIMEOUT = 40
_STOP_TIMEOUT = 20
"""Seconds."""

_TCP_PORT = 445
RDMA_PORTS = {t: t.traits.ksmbd_port for t in RdmaType}

# The kernel has one ksmbd, which opens its listeners when mountd tells it to. The lock file of the
# tools lies in /run/lock.
_START = r"""
private=$1 logs=$2 share=$3 account=$4 tcp_port=$5 rdma_port=$6 deadline=$(($(date +%s) + $7))
shift 7
mkdir -p "$private" "$logs" "$share" /run/lock
chmod 1777 "$share"
cat >"$private/ksmbd.conf"
(umask 077; echo "$account" >"$private/ksmbdpwd.db")
setsid "$@" </dev/null >>"$logs/mountd.log" 2>&1 &
echo $! >"$private/main"
missing() {
    if [ "$tcp_port" ] && ! ss -Hltn | grep -q ":$tcp_port "; then echo "TCP port $tcp_port"
    elif [ "$rdma_port" ] && ! rdma resource show cm_id | grep -F LISTEN | grep -q ":$rdma_port "
    then echo "RDMA port $rdma_port"
    fi
}
while m=$(missing); [ "$m" ]; do
    kill -0 $! 2>/dev/null || { echo "ended"; exit 1; }
    [ "$(date +%s)" -lt "$deadline" ] || { echo "does not listen on $m"; exit 1; }
    sleep 0.1
done
"""

_STOP = r"""
control=$1 private=$2 tcp_port=$3 deadline=$(($(date +%s) + $4))
[ -e "$private/main" ] || exit 0
main=$(cat "$private/main")
"$control" --shutdown
while kill -0 "$main" 2>/dev/null || ss -Hltn | grep -q ":$tcp_port "; do
    if [ "$(date +%s)" -ge "$deadline" ]; then
        pkill -KILL --session "$main"
        exit 1
    fi
    sleep 0.05
done
rm -f "$private/main"
"""


class Ksmbd(SmbServer):
    """ksmbd on a host that has the machine's own network stack: it listens nowhere else.

    ::

        with mounted(client, ksmbd, Transport.SMBDIRECT) as share:
            client.run(["ls", str(share)])
    """

    kind = ServerKind.KSMBD

    def __init__(self, host: Host, transports: Sequence[Transport], samba: SambaTransports) -> None:
        logs = host.machine.shared.here / "ksmbd"
        super().__init__(host, transports, _SHARE, logs, samba)

    def start(self) -> None:
        self.make_log_directory()
        end = self.host.ends[0]
        config = ksmbd_config(
            name=self.host.name.upper(),
            interface=end.device,
            share=self.share,
            share_directory=self.share_directory,
        )
        rdma = RDMA_PORTS[end.rdma] if end.rdma and Transport.SMBDIRECT in self.transports else ""
        mountd = [
            f"{_TOOLS}/ksmbd.mountd",
            "--nodetach",
            f"--config={_PRIVATE}/ksmbd.conf",
            f"--pwddb={_PRIVATE}/ksmbdpwd.db",
        ]
        script = [
            *("sh", "-c", _START, "start"),
            *(str(_PRIVATE), str(self.host.machine.shared.path_there(self.logs))),
            *(str(self.share_directory), ksmbd_account_line(self.account)),
            *(str(_TCP_PORT), str(rdma), str(_READY_TIMEOUT)),
            *mountd,
        ]
        self._run_start(script, config, timeout=_READY_TIMEOUT + 30)

    def stop(self) -> None:
        arguments = [f"{_TOOLS}/ksmbd.control", str(_PRIVATE), str(_TCP_PORT), str(_STOP_TIMEOUT)]
        stopped = self.host.run(
            ["sh", "-c", _STOP, "stop", *arguments], timeout=_STOP_TIMEOUT + 20, check=False
        )
        if not stopped.ok:
            raise ProvisionError(
                f"ksmbd on {self.host.name} did not stop within {_STOP_TIMEOUT} s",
                detail=f"{stopped.output.strip()}\n{self.log_end()}",
            )

    def running(self) -> bool:
        test = 'kill -0 "$(cat "$0/main")"'
        return self.host.run(["sh", "-c", test, str(_PRIVATE)], check=False).ok


@contextmanager
def running_ksmbd(
    host: Host, driver: LoadedDriver, transports: Sequence[Transport]
) -> Iterator[Ksmbd]:
    """Have ksmbd running on a host while the context lasts; a machine has only one.

    ::

        with running_ksmbd(environment.hosts["kserver"], driver, [Transport.TCP]) as ksmbd:
            assert ksmbd.running()

    :raises ProvisionError: it did not start, with the end of its log
    """
    samba = samba_transports(host.machine, driver.launcher)
    with running(Ksmbd(host, transports, samba)) as ksmbd:
        yield ksmbd
