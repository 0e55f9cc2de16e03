"""The suite's command line, for machines that have Python's standard library and nothing else."""

from __future__ import annotations

import argparse
import errno
import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from smbdirect_testbed.echo.client import Refused, WrongAnswer
from smbdirect_testbed.echo.connection import (
    DEFAULT_PORTS,
    Disconnected,
    Transport,
    connect,
    listen,
)
from smbdirect_testbed.echo.operation import Operation

if TYPE_CHECKING:
    from smbdirect_testbed.echo.checking import CheckResult
    from smbdirect_testbed.smbdirect import ConnectionParameters

# Each action imports what it needs: the packed file is compiled at every start, and an emulated
# machine takes a second for all of it.

# The same numbers as the testbed's own command line; that needs more than the standard library.
_PASSED, _FAILED, _USAGE, _UNREACHABLE, _INTERRUPTED = 0, 1, 2, 3, 130

_NO_SUCH_FAMILY = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


class _UsageError(Exception):
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status.

    0: all passed; 1: a check failed, a payload was wrong, or a server of ours crashed; 2: bad
    usage; 3: no connection, no listening; 130: interrupted.
    """
    options = _parser().parse_args(arguments)
    try:
        status: int = options.do(options)
        sys.stdout.flush()
        return status
    except _UsageError as e:
        return _complain(str(e), _USAGE)
    except (Refused, WrongAnswer, Disconnected) as e:
        return _complain(str(e), _FAILED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAILED
    except OSError as e:
        return _complain(e.strerror or str(e), _UNREACHABLE)
    except KeyboardInterrupt:
        return _complain("interrupted", _INTERRUPTED)


def serve(options: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    from smbdirect_testbed.echo.server import EchoServer, Limits

    limits = Limits(connections=options.most_connections, patience=options.patience)
    parameters = _parameters(options)
    with ExitStack() as stack:
        listeners = []
        for address in options.listen or ["0.0.0.0", "::"]:
            for transport, port in _ports(options).items():
                try:
                    sock = stack.enter_context(listen(address, port, transport, parameters))
                except OSError as e:
                    if not options.listen and e.errno in _NO_SUCH_FAMILY:
                        continue  # a machine without IPv6, say
                    raise
                listeners.append((sock, transport))
                where = f"{address} port {sock.getsockname()[1]} over {transport}"
                print(f"listening on {where}", flush=True)
        if not listeners:
            raise _UsageError("there is no address to listen on; --listen names one")
        print("ready; Ctrl-C ends it", flush=True)
        server = EchoServer(listeners, limits, say=lambda line: print(line, flush=True))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: server.stop())
        server.run()
    print(f"ended after {server.served} connections")
    return _complain(f"{server.crashes} crashed", _FAILED) if server.crashes else _PASSED


def run(options: argparse.Namespace) -> int:
    """Run the checks against a server."""
    from smbdirect_testbed.echo.checking import Outcome, Target
    from smbdirect_testbed.echo.suite import ALL_CHECKS, run_suite

    if options.list:
        for check in ALL_CHECKS:
            print(f"{check.name:32} {check.about}{' (RDMA)' if check.rdma else ''}")
        return _PASSED
    if not options.address:
        raise _UsageError("run whose checks? name the server's address")
    if not any(options.only in check.name for check in ALL_CHECKS):
        raise _UsageError(f"no check has {options.only} in its name; run --list shows them")
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(4))
    parameters = _parameters(options)
    results: list[CheckResult] = []
    for transport, port in _ports(options).items():
        connect(options.address, port, transport, parameters=parameters).close()
        target = Target(options.address, port, transport, options.patience, parameters)
        for result in run_suite(target, seed=seed, only=options.only):
            results.append(result)
            _show(result, as_json=options.json)
    counts = {o: sum(r.outcome is o for r in results) for o in Outcome}
    passed = not counts[Outcome.FAILED] and counts[Outcome.PASSED] > 0
    if options.json:
        verdict = "passed" if passed else "failed"
        print(json.dumps({"verdict": verdict, "seed": seed, "counts": counts}))
    else:
        numbers = ", ".join(f"{n} {o}" for o, n in counts.items() if n)
        print(f"{'PASSED' if passed else 'FAILED'}: {numbers}; --seed {seed} repeats it")
    return _PASSED if passed else _FAILED


def _show(result: CheckResult, *, as_json: bool) -> None:
    if as_json:
        line = json.dumps(
            {
                "check": result.name,
                "transport": result.transport,
                "outcome": result.outcome,
                "seconds": round(result.seconds, 4),
                "message": result.message,
            }
        )
    else:
        what = f"{result.outcome.upper():7} {result.transport:9} {result.name}"
        line = f"{what} {result.seconds:.2f} s{': ' if result.message else ''}{result.message}"
    print(line, flush=True)


def bench(options: argparse.Namespace) -> int:
    """Measure against a server, the transports taking turns; every payload is verified."""
    from smbdirect_testbed.echo.bench import Plan, measure
    from smbdirect_testbed.echo.bench_report import table

    plan = Plan(
        options.address,
        _ports(options),
        operations=options.operation or tuple(Operation),
        sizes=options.size,
        depths=options.depth,
        seconds=options.seconds,
        rounds=options.rounds,
        patience=options.patience,
        seed=options.seed or 1,
    )
    # Standard output has the results alone: it may be JSON.
    document = measure(plan, say=lambda line: print(line, file=sys.stderr, flush=True))
    if options.json == "-":
        print(json.dumps(document))
    else:
        if options.json:
            Path(options.json).write_text(json.dumps(document, indent=1) + "\n")
        print(table(document))
    if options.plot:
        _plot(document, options.plot)
    return _PASSED


def report(options: argparse.Namespace) -> int:
    """Show results that bench left as JSON, from this machine or another."""
    from smbdirect_testbed.echo.bench_report import NoResults, load, table

    try:
        document = load(options.file)
    except NoResults as e:
        raise _UsageError(str(e)) from e
    print(table(document))
    if options.plot:
        _plot(document, options.plot)
    return _PASSED


def _plot(document: dict[str, object], path: Path) -> None:
    from smbdirect_testbed.echo.bench_plot import PlotUnavailable, plot

    try:
        plot(document, path)
    except (PlotUnavailable, ValueError) as e:
        raise _UsageError(f"no plot: {e}") from e


def _ports(options: argparse.Namespace) -> dict[Transport, int]:
    if options.transport != "both":
        transport = Transport(options.transport)
        port = DEFAULT_PORTS[transport] if options.port is None else options.port
        return {transport: port}
    if options.port is None:
        return {t: DEFAULT_PORTS[t] for t in Transport}
    return {Transport.SMBDIRECT: options.port, Transport.TCP: options.port + 1}


def _parameters(options: argparse.Namespace) -> ConnectionParameters | None:
    if not options.parameter:
        return None
    from smbdirect_testbed.smbdirect import ConnectionParameters

    known = [f.name for f in fields(ConnectionParameters)]
    values = {}
    for given in options.parameter:
        name, _, value = given.partition("=")
        if name not in known or not value.isdecimal():
            raise _UsageError(f"--parameter {given}: NAME=NUMBER, names are {', '.join(known)}")
        values[name] = int(value)
    return ConnectionParameters(**values)


def _complain(text: str, status: int) -> int:
    print(f"smbdirect-testbed echo: {text}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="smbdirect-testbed echo", description="Echo, RDMA read and write over SMB-Direct."
    )
    actions = parser.add_subparsers(dest="action", required=True)

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--transport", choices=[*Transport, "both"], default="both")
    common.add_argument(
        "--port",
        type=_port,
        metavar="N",
        help="with both transports: of smbdirect, tcp has the next one; "
        f"default {DEFAULT_PORTS['smbdirect']} and {DEFAULT_PORTS['tcp']}",
    )
    common.add_argument(
        "--patience",
        type=_positive,
        metavar="S",
        help="seconds without progress after which a connection is given up",
    )
    tuned = argparse.ArgumentParser(add_help=False)
    tuned.add_argument(
        "--parameter",
        action="append",
        metavar="NAME=NUMBER",
        help="of SMB-Direct connections, instead of the kernel module's default",
    )

    server = actions.add_parser("serve", help=serve.__doc__, parents=[common, tuned])
    server.add_argument(
        "--listen", action="append", metavar="ADDRESS", help="may be repeated; default: all"
    )
    server.add_argument("--most-connections", type=_count, metavar="N", default=64)
    server.set_defaults(do=serve, patience=120.0)

    client = actions.add_parser("run", help=run.__doc__, parents=[common, tuned])
    client.add_argument("address", nargs="?", help="the server's, IPv4 or IPv6")
    client.add_argument("-k", dest="only", default="", metavar="PART", help="of a check's name")
    client.add_argument("--list", action="store_true", help="list the checks, and run none")
    client.add_argument("--json", action="store_true", help="an object a line for each check")
    client.add_argument("--seed", type=int, metavar="N", help="repeat a run's data")
    client.set_defaults(do=run, patience=30.0)

    measuring = actions.add_parser("bench", help=bench.__doc__, parents=[common])
    measuring.add_argument("address", help="the server's, IPv4 or IPv6")
    measuring.add_argument(
        "--operation",
        type=Operation,
        nargs="+",
        choices=list(Operation),
        metavar="NAME",
        help=f"of {', '.join(Operation)}; default: all",
    )
    measuring.add_argument(
        "--size",
        type=_size,
        nargs="+",
        default=[64, 4096, 65536, 1048576],
        metavar="BYTES",
        help="with K or M for KiB or MiB, if you like",
    )
    measuring.add_argument(
        "--depth",
        type=_count,
        nargs="+",
        default=[1, 8],
        metavar="N",
        help="operations under way at a time",
    )
    measuring.add_argument(
        "--seconds",
        type=_positive,
        default=2.0,
        metavar="S",
        help="of measuring for each line of the table",
    )
    measuring.add_argument(
        "--rounds", type=_count, default=4, metavar="N", help="turns in which these are spent"
    )
    measuring.add_argument("--seed", type=int, metavar="N", help="of the payloads")
    measuring.add_argument("--json", metavar="FILE", help="leave the results there; - is stdout")
    measuring.add_argument("--plot", type=Path, metavar="FILE", help=".svg, .png or .pdf")
    measuring.set_defaults(do=bench, patience=30.0)

    shown = actions.add_parser("report", help=report.__doc__)
    shown.add_argument("file", type=Path, help="what bench --json wrote")
    shown.add_argument("--plot", type=Path, metavar="FILE", help=".svg, .png or .pdf")
    shown.set_defaults(do=report)
    return parser


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number < 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port")
    return number


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < 1_000_000:
        raise argparse.ArgumentTypeError(f"{text} is not a time in seconds")
    return number


def _count(text: str) -> int:
    number = int(text)
    if not 0 < number <= 1024:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and 1024")
    return number


def _size(text: str) -> int:
    unit = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:].upper(), 1)
    number = int(text[:-1] if unit > 1 else text) * unit
    if not 0 < number <= 8 << 20:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 byte and 8 MiB")
    return number
