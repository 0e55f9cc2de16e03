"""The includable gitlab-ci job: valid, and its script does what it says."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from smbdirect_testbed.lib import paths


@pytest.fixture
def job() -> dict[str, Any]:
    jobs = yaml.safe_load((paths.PROJECT / "gitlab-ci.yml").read_text())
    assert list(jobs) == ["smbdirect-testbed"]
    return dict(jobs["smbdirect-testbed"])


def test_keys_are_those_of_a_job(job: dict[str, Any]) -> None:
    assert set(job) == {
        "stage", "image", "variables", "cache", "script", "artifacts", "interruptible", "timeout",
    }  # fmt: skip
    assert job["artifacts"]["reports"]["junit"] == "results/2*/junit.xml"
    assert all(isinstance(line, str) for line in job["script"])


@pytest.mark.parametrize("environment", ["", "siw", "an environment *"])
@pytest.mark.parametrize("driver", ["", "/a tree/linux"])
def test_script_sets_up_and_runs(
    job: dict[str, Any], tmp_path: Path, driver: str, environment: str
) -> None:
    """The script, with a stand-in for the two programs it starts."""
    for name in (".ci/setup", ".venv/bin/smbdirect-testbed"):
        program = tmp_path / name
        program.parent.mkdir(parents=True)
        program.write_text(f'#!/bin/sh\nprintf "[%s]" {name} "$@"\n')
        program.chmod(0o755)
    done = subprocess.run(
        ["bash", "-e", "-c", "\n".join(job["script"])],
        env={
            **os.environ,
            **job["variables"],
            "CI_PROJECT_DIR": str(tmp_path),
            "SMBDIRECT_TESTBED_DRIVER": driver,
            "SMBDIRECT_TESTBED_ENVIRONMENT": environment,
            "SMBDIRECT_TESTBED_ARGUMENTS": "-k nbt *",
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert job["variables"]["SMBDIRECT_TESTBED_ENVIRONMENT"] == ""
    what = f"[{environment}]" if environment else ""
    option = f"[--driver][{driver}]" if driver else ""
    run = "[.venv/bin/smbdirect-testbed][run][--then-prepare]"
    assert done.stdout == f"[.ci/setup]{run}{what}{option}[-k][nbt][*]"


@pytest.mark.parametrize("reference", ["main", "commit", "v1", "--upload-pack=touch ran"])
def test_the_testbed_of_a_branch_a_tag_or_a_commit(
    job: dict[str, Any], tmp_path: Path, reference: str
) -> None:
    origin = tmp_path / "origin"
    git = ["git", "-C", str(origin), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "init", "--quiet", "-b", "main", origin], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", "one"], check=True)
    subprocess.run([*git, "tag", "v1"], check=True)
    commit = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
    done = subprocess.run(
        ["bash", "-e", "-c", job["script"][0] + "\ngit rev-parse HEAD"],
        env={
            **os.environ,
            "SMBDIRECT_TESTBED_URL": origin.as_uri(),
            "SMBDIRECT_TESTBED_REF": commit if reference == "commit" else reference,
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not list(tmp_path.rglob("ran"))
    assert (done.stdout == f"{commit}\n") is not reference.startswith("-")


def test_merge_requests_have_no_part_in_the_cache_of_protected_branches(
    job: dict[str, Any],
) -> None:
    assert "$CI_COMMIT_REF_PROTECTED" in job["cache"]["key"]
    assert job["image"] == "$SMBDIRECT_TESTBED_IMAGE"
    assert job["variables"]["SMBDIRECT_TESTBED_IMAGE"].startswith("debian:")


def test_the_projects_own_pipeline() -> None:
    jobs = yaml.safe_load((paths.PROJECT / ".gitlab-ci.yml").read_text())
    assert jobs.pop("include") == [{"local": "gitlab-ci.yml"}]
    assert {name: job["script"] for name, job in jobs.items()} == {
        "own-tests": [".ci/test"],
        "fresh-containers": [".ci/test container"],
        "bugs-put-back": [".ci/setup dev", ".venv/bin/python -m tests.regressions run"],
    }
    for nightly in ("fresh-containers", "bugs-put-back"):
        assert jobs[nightly]["rules"] == [{"if": '$CI_PIPELINE_SOURCE == "schedule"'}]
