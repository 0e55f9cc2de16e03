"""The main jobs: a run of scenarios, and an environment left up."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from smbdirect_testbed.carriers.table import carrier
from smbdirect_testbed.carriers.vm import kvm_probe
from smbdirect_testbed.config.envfile import load_environment
from smbdirect_testbed.config.spec import CarrierKind, DriverOrigin, DriverSpec, EnvironmentSpec
from smbdirect_testbed.environment.blueprint import Blueprint, resolve
from smbdirect_testbed.environment.environment import Environment
from smbdirect_testbed.environment.instance import new_instance
from smbdirect_testbed.environment.provide import provide, provide_parts
from smbdirect_testbed.image.image import find_image
from smbdirect_testbed.image.recipe import read_recipe
from smbdirect_testbed.kernel import driver_source, uml
from smbdirect_testbed.kernel.tree import is_full, numbers, tree_version
from smbdirect_testbed.lib import cache, paths
from smbdirect_testbed.lib.background import Background
from smbdirect_testbed.lib.errors import CarrierFailed, TestbedError, UsageError
from smbdirect_testbed.lib.exits_soon import ExitsSoon
from smbdirect_testbed.lib.progress import Progress
from smbdirect_testbed.results.record import announced
from smbdirect_testbed.results.results import RunResults, new_run_id
from smbdirect_testbed.run.fallback import ONLY, Attempt, failing

if TYPE_CHECKING:
    from smbdirect_testbed.plugin.shard import Share

_IMAGE = "trixie"
_SOONEST, _QUICKEST = "rxe", "uml-rxe"


def default_environment(tree: Path | None = None) -> str:
    """The environment of a run that names none: the one with the soonest verdict.

    Without KVM, scenarios take a third of the time in User Mode Linux; but to build that takes
    longer than the emulated machines need for all of them.

    :param tree: of the driver; one of another version than the image's kernel hardly fits that
    """
    image = find_image(read_recipe(_IMAGE))
    foreign = tree and is_full(tree) and numbers(tree_version(tree))
    if foreign and image and foreign != numbers(image.kernel_release):
        return _QUICKEST
    if image and uml.is_cached(image):
        return quickest_environment()
    return _SOONEST


def quickest_environment() -> str:
    """The environment that the same scenarios take the least time in, once it has been built."""
    return _SOONEST if kvm_probe.probe().works else _QUICKEST


def run_where_machines_start(
    run: Callable[[EnvironmentSpec, Attempt], int],
    spec: EnvironmentSpec,
    progress: Progress,
    *,
    named: bool,
) -> int:
    """Run in an environment; if no machine can be started there, in one of another carrier.

    :param run: runs, and returns the exit status
    :param named: the user wants this environment and no other
    """
    other = None if named else _other_environment(spec)
    if other is None:
        return run(spec, ONLY)
    try:
        return run(spec, Attempt(last=False))
    except CarrierFailed as e:
        progress.say(f"no machine can be started in {spec.name}: {e.message}")
        progress.say(f"going on in {other.name}: {_what_it_takes(other)}")
        return run(other, Attempt(before=f"{spec.name}: {e.message}"))


def _other_environment(spec: EnvironmentSpec) -> EnvironmentSpec | None:
    """What to try when no machine can be started in the default environment.

    None if the machines' kernel is the user's own: it is under test, and no other will do.
    """
    own = spec.driver.origin is DriverOrigin.TREE and is_full(spec.driver.path or Path())
    if own and spec.carrier is CarrierKind.UML:
        return None
    other = load_environment(_QUICKEST if spec.name == _SOONEST else _SOONEST)
    machine = dataclasses.replace(other.machine, cold=spec.machine.cold)
    return dataclasses.replace(other, driver=spec.driver, machine=machine)


def _what_it_takes(spec: EnvironmentSpec) -> str:
    """For people: what a run in an environment costs here that does not cost another."""
    if spec.carrier is CarrierKind.VM:
        return f"a virtual machine, {kvm_probe.probe().reason}"
    image = find_image(read_recipe(spec.image))
    if image and uml.is_cached(image):
        return "User Mode Linux, which is built already"
    return "User Mode Linux, which is built first; that takes 5 to 10 minutes on 2 processors, once"


def prepare_quickest(progress: Progress, *, passed: bool) -> None:
    """After a run in :func:`default_environment`, have the next one in the quickest.

    Whatever becomes of that, the verdict is the run's, and is the last line.

    :param passed: the run's verdict
    """
    image = find_image(read_recipe(_IMAGE))
    if quickest_environment() == _SOONEST or (image and uml.is_cached(image)):
        return
    progress.say(
        "that was the verdict; for later runs, which take a third of the time in it, User Mode"
        " Linux is built now (Ctrl-C leaves it for another time)"
    )
    try:
        provide_parts(resolve(load_environment(_QUICKEST)), progress)
    except TestbedError as e:
        progress.say(f"later runs are as slow as this one: {e.message}")
    except KeyboardInterrupt:
        progress.say("later runs are as slow as this one: interrupted")
    verdict = "passed" if passed else "FAILED"
    progress.say(f"run: {verdict}; {paths.results() / 'latest/report.html'} says what and why")


def watched_places(spec: EnvironmentSpec, tree: Path) -> list[Path]:
    """Where in a driver's tree a save changes what runs."""
    return carrier(spec.carrier).watched(tree)


def with_driver(spec: EnvironmentSpec, tree: Path | None) -> EnvironmentSpec:
    """The spec, with its driver built from ``tree`` if one is given.

    :raises UsageError: the spec's or the given tree holds no driver
    """
    if tree is not None:
        driver = DriverSpec(origin=DriverOrigin.TREE, path=tree)
        spec = dataclasses.replace(spec, driver=driver)
    driver_source.check(spec.driver)
    return spec


def with_start(spec: EnvironmentSpec, *, cold: bool) -> EnvironmentSpec:
    """The spec, with its machine booted and not cloned if ``cold``."""
    if not cold:
        return spec
    return dataclasses.replace(spec, machine=dataclasses.replace(spec.machine, cold=True))


def bring_up(spec: EnvironmentSpec, progress: Progress) -> list[str]:
    """Provide an environment and leave it up; return the names of its hosts.

    :raises UsageError: it is up already
    :raises ProvisionError: a step failed
    """
    paths.require_writable()
    with _provided(spec.name, resolve(spec), progress, keep=True) as environment:
        return list(environment.hosts)


def run_scenarios(
    spec: EnvironmentSpec,
    scenarios: Sequence[str],
    expression: str | None,
    progress: Progress,
    *,
    keep: bool,
    thorough: bool = False,
    jobs: int = 0,
    run_all: bool = False,
    maxfail: int = 0,
    plugins: Sequence[object] = (),
    attempt: Attempt = ONLY,
) -> int:
    """Run scenarios in an environment and write the results; return the exit status.

    :param scenarios: pytest paths; empty for all
    :param expression: pytest's ``-k``
    :param thorough: also run the scenarios that are marked so, which a choice does anyway
    :param jobs: in so many environments at once; 0 for as many as are useful
    :param run_all: also run what stands on something that is red
    :param maxfail: end after so many failures; 0 for all
    :param plugins: more pytest plugins, for those who run scenarios from Python
    :param attempt: what happens if no machine can be started
    :raises UsageError: a path or the expression is wrong, or matches nothing
    :raises CarrierFailed: no machine can be started, and there is another environment to try
    :raises ProvisionError: this computer does not permit the environment
    """
    blueprint = resolve(spec)
    if jobs > 1 and not blueprint.carrier.own_kernel:
        raise UsageError(
            f"carrier {spec.carrier} has one environment at a time", hint="leave out --jobs"
        )
    blueprint.carrier.require_possible(spec)
    paths.require_writable()
    run_id = new_run_id(spec.name)
    directory = paths.results() / run_id
    chosen = bool(scenarios) or bool(expression)
    at_once = not keep and _is_soon(blueprint)
    if not jobs and not keep and not chosen:
        from smbdirect_testbed.run.shards import useful_jobs

        jobs = useful_jobs(spec)

    unmade: TestbedError | None = None

    def run(name: str, below: Path, share: Share | None = None) -> tuple[int, RunResults]:
        def environment(name: str) -> AbstractContextManager[Environment]:
            return _provided(name, blueprint, progress, keep=keep, watched=True)

        # After a scenario that broke its machines there is another.
        names = (f"{name}-{number}" for number in itertools.count(2))
        with ExitStack() as stack:
            # Left last: an interrupted run does not wait for ever for what it provided.
            exits = stack.enter_context(ExitsSoon())
            first = attempt.of(spec.name, failing(unmade) if unmade else environment(name))
            background = stack.enter_context(Background(first, at_once=at_once))
            following = itertools.chain([background.use()], (environment(n) for n in names))
            # While this is imported and looks for scenarios, a machine can boot.
            from smbdirect_testbed.plugin import RunPlugin

            plugin = RunPlugin(
                following.__next__,
                below,
                progress,
                environment=spec.name,
                keep=keep,
                thorough=thorough or chosen,
                share=share,
                run_all=run_all,
                maxfail=maxfail,
                interrupted=exits.begin,
                raises=attempt.raises,
            )
            plugin.results.notes.extend(attempt.notes)
            with cache.disk_full_reported(below):
                return plugin.main(scenarios, expression, plugins), plugin.results

    def part(share: Share, below: Path) -> RunResults:
        return run(f"{run_id}-{share.number + 1}", below, share)[1]

    if jobs <= 1:
        with announced(directory):
            return run(run_id, directory)[0]
    from smbdirect_testbed.run.shards import run_in_parts

    # Once for all. What fails here would fail in each.
    try:
        provide_parts(blueprint, progress)
    except TestbedError as e:
        unmade = e
    with announced(directory):
        if unmade:
            return run(run_id, directory)[0]
        return run_in_parts(part, jobs, directory, progress, kind=spec.carrier).verdict.exit_status


def _is_soon(blueprint: Blueprint) -> bool:
    """Whether an environment comes up so soon that a mistake in what is to run costs little.

    Never on this computer's own kernel, into which nothing is loaded for a mistake.
    """
    if not blueprint.carrier.own_kernel or blueprint.spec.driver.origin is DriverOrigin.TREE:
        return False
    image = find_image(blueprint.recipe)
    return image is not None and blueprint.carrier.is_soon(image, blueprint.spec.kernel)


@contextmanager
def _provided(
    name: str, blueprint: Blueprint, progress: Progress, *, keep: bool, watched: bool = False
) -> Iterator[Environment]:
    with new_instance(name, keep=keep) as instance:
        provided = provide(blueprint, progress, instance.directory, keep=keep, watched=watched)
        with provided as environment:
            instance.write_state(environment, kept=False)
            yield environment
        if keep and not environment.death():
            instance.write_state(environment, kept=True)
