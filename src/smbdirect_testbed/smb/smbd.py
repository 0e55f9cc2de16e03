"""smbd: Samba's file server, started for one environment and stopped completely."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from smbdirect_testbed.config.ports import PORTS
from smbdirect_testbed.config.spec import ServerKind, Transport
from smbdirect_testbed.image.image import Image
from smbdirect_testbed.lib import cache
from smbdirect_testbed.lib.errors import CommandFailed, ProvisionError
from smbdirect_testbed.lib.progress import Progress
from smbdirect_testbed.machine.host import Host
from smbdirect_testbed.machine.loaded_driver import LoadedDriver
from smbdirect_testbed.machine.machine import Machine
from smbdirect_testbed.smb.config import smbd_config, smbpasswd_line
from smbdirect_testbed.smb.server import SmbServer
from smbdirect_testbed.smb.transports import SambaTransports, samba_transports

_SHARE = PurePosixPath("/srv/share")
_READY_TIMEOUT = 60
"""Seconds; it takes about 3 in an emulated machine."""
_STOP_TIMEOUT = 20
_NATIVE = "native"

# Every process of smbd's stays in its control group, whatever session it moves to, so that they
# can be told and counted. Start and wait are one script: each command costs a round trip. An RDMA
# listener is seen only in the list of connection managers' ids.
#
# Its output goes through a pipe, and from there to the shared directory: a template can hold smbd,
# but not an open file of the shared directory. smbd holds the pipe for reading, too, so that it
# neither waits for a reader nor dies without one.
#
# smbd looks up its own host name for each connection. Without it in /etc/hosts that is a question
# to a name server, and 5 s when there is none.
_PUMP = r"""
pump() {
    mkdir -p "$logs"
    setsid sh -c 'exec cat "$0" >>"$1"' "$private/log" "$logs/smbd.out" </dev/null >&2 2>&- &
    echo $! >"$private/pump"
}
"""

_START = r"""
group=$1 private=$2 logs=$3 share=$4 user=$5 account=$6; shift 6
addresses=$1 tcp_ports=$2 rdma_port=$3 deadline=$(($(date +%s) + $4)); shift 4
directories=
for d in private state cache lock pid ncalrpc; do directories="$directories $private/$d"; done
mkdir -p $directories "$group" "$share"
chmod 700 "$private"
chmod 1777 "$share"
cat >"$private/smb.conf"
(umask 077; echo "${account%%:UID:*}:$(id -u "$user"):${account#*:UID:}" >"$private/smbpasswd")
read -r name </proc/sys/kernel/hostname
grep -qw "$name" /etc/hosts || echo "127.0.0.1 $name" >>/etc/hosts

missing() {
    listening=$(ss -Hltn)
    for a in $addresses; do
        for p in $tcp_ports; do
            case $listening in *" $a:$p "*) ;; *) m="$a, TCP port $p"; return ;; esac
        done
    done
    m=
    [ "$rdma_port" ] || return
    listening=$(rdma resource show cm_id | grep -F "state LISTEN")
    for a in $addresses; do
        b=${a#[}
        case $listening in
        *" src-addr $a:$rdma_port "* | *" src-addr ${b%]}:$rdma_port "*) ;;
        *) m="$a, RDMA port $rdma_port"; return ;;
        esac
    done
}
[ -p "$private/log" ] || mkfifo -m 600 "$private/log"
setsid sh -c 'echo $$ >"$1/cgroup.procs"; shift; exec "$@"' sh "$group" "$@" \
    </dev/null 1<>"$private/log" 2>&1 &
main=$!
echo $main >"$private/main"
[ -z "$logs" ] || pump
while missing; [ "$m" ]; do
    kill -0 $main 2>/dev/null || { echo "ended"; exit 1; }
    [ "$(date +%s)" -lt "$deadline" ] || { echo "does not listen on $m"; exit 1; }
    sleep 0.05
done
"""

_ADOPT = r"""
private=$1 logs=$2
kill -0 "$(cat "$private/main")" && pump
"""

_STOP = r"""
group=$1 private=$2 deadline=$(($(date +%s) + $3)) told=
[ -d "$group" ] || exit 0
while [ "$(cat "$group/cgroup.procs")" ]; do
    [ "$told" ] || kill -TERM $(cat "$group/cgroup.procs") 2>/dev/null
    told=1
    if [ "$(date +%s)" -ge "$deadline" ]; then
        for p in $(cat "$group/cgroup.procs"); do cat "/proc/$p/comm"; done
        echo 1 >"$group/cgroup.kill"
        exit 1
    fi
    sleep 0.05
done
# With the last writer the pump ends, too; then all of the log is there.
while [ -e "$private/pump" ] && kill -0 "$(cat "$private/pump")" 2>/dev/null; do
    [ "$(date +%s)" -lt "$deadline" ] || break
    sleep 0.05
done
rm -f "$private/main" "$private/pump"
rmdir "$group"
"""

# smbd has a process for each connection, and gives it this title.
_WAIT_UNTIL_IDLE = r"""
group=$1 deadline=$(($(date +%s) + $2))
while grep -asq "^smbd: client" $(sed "s,.*,/proc/&/cmdline," "$group/cgroup.procs"); do
    [ "$(date +%s)" -lt "$deadline" ] || exit 1
    sleep 0.02
done
"""


class Smbd(SmbServer):
    """Samba's smbd on a host, under ``smbdirect-run`` when that is needed for SMB-Direct.

    ::

        with smbd.offering(Transport.TCP):
            assert not smbclient.run("ls", transports=[Transport.SMBDIRECT], check=False).ok
    """

    kind = ServerKind.SMBD

    def __init__(self, host: Host, transports: Sequence[Transport], samba: SambaTransports) -> None:
        logs = host.machine.shared.here / f"smbd-{host.name}"
        super().__init__(host, transports, _SHARE, logs, samba)
        # Not on the shared directory: Samba's databases are mapped into memory.
        self._private = PurePosixPath(f"/run/smbd-{host.name}")
        self._group = PurePosixPath(f"/proc/1/root/sys/fs/cgroup/smbd-{host.name}")

    def start(self) -> None:
        self._start(self._logs_there)

    def start_for_template(self) -> None:
        # Its log waits in the pipe.
        self._start("")

    def adopt(self) -> bool:
        script = _PUMP + _ADOPT
        arguments = [str(self._private), self._logs_there]
        return self.host.run(["sh", "-c", script, "adopt", *arguments], check=False).ok

    @property
    def _logs_there(self) -> str:
        return str(self.host.machine.shared.path_there(self.logs))

    def _start(self, logs: str) -> None:
        self.make_log_directory()
        config = smbd_config(
            name=self.host.name.upper(),
            interfaces=[i for e in self.host.ends for i in (e.ipv4, e.ipv6)],
            transports=self.samba.spelt(self.transports),
            private=self._private,
            share=self.share,
            share_directory=self.share_directory,
        )
        addresses = [a for e in self.host.ends for a in (f"{e.ipv4.ip}", f"[{e.ipv6.ip}]")]
        tcp = [str(PORTS[t]) for t in self.transports if t is not Transport.SMBDIRECT]
        rdma = str(PORTS[Transport.SMBDIRECT]) if Transport.SMBDIRECT in self.transports else ""
        # It leads a session already, and would fail to make one. The session is needed: at its end
        # smbd signals its whole process group.
        smbd = ["smbd", "--foreground", "--no-process-group", "--debug-stdout"]
        smbd.append(f"--configfile={self._private}/smb.conf")
        script = [
            *("sh", "-c", _PUMP + _START, "start"),
            *(str(self._group), str(self._private), logs, str(self.share_directory)),
            *(self.account.user, smbpasswd_line(self.account)),
            *(" ".join(addresses), " ".join(tcp), rdma, str(_READY_TIMEOUT)),
            *self.samba.command(smbd),
        ]
        self._run_start(script, config, timeout=_READY_TIMEOUT + 30)

    def stop(self) -> None:
        arguments = [str(self._group), str(self._private), str(_STOP_TIMEOUT)]
        try:
            self.host.run(["sh", "-c", _STOP, "stop", *arguments], timeout=_STOP_TIMEOUT + 20)
        except CommandFailed as e:
            raise ProvisionError(
                f"smbd on {self.host.name} did not stop within {_STOP_TIMEOUT} s and was killed",
                detail=f"{e.output.strip()}\n{self.log_end()}",
            ) from e

    def wait_until_idle(self, timeout: int = 30) -> None:
        """Wait until it serves no client; until then it holds files that clients left open.

        :param timeout: seconds
        :raises ProvisionError: it still serves one
        """
        arguments = [str(self._group), str(timeout)]
        script = ["sh", "-c", _WAIT_UNTIL_IDLE, "idle", *arguments]
        if not self.host.run(script, timeout=timeout + 20, check=False).ok:
            raise ProvisionError(
                f"smbd on {self.host.name} still serves a client that ended {timeout} s ago",
                detail=self.log_end(),
            )

    def running(self) -> bool:
        test = 'kill -0 "$(cat "$0/main")"'
        return self.host.run(["sh", "-c", test, str(self._private)], check=False).ok


def known_transports(
    image: Image, machine: Machine, driver: LoadedDriver, progress: Progress
) -> SambaTransports:
    """How the Samba of an image is told a transport; a machine is asked the first time only."""

    def ask(directory: Path) -> None:
        native = samba_transports(machine, driver.launcher).native
        (directory / _NATIVE).write_text("yes" if native else "no")

    entry = cache.provide("samba", image.digest[:16], ask, progress)
    native = (entry / _NATIVE).read_text() == "yes"
    return SambaTransports(None if native else driver.launcher)
