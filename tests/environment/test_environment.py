"""What an environment says of itself."""

from __future__ import annotations

from smbdirect_testbed.environment.environment import joined_facts


def test_what_is_the_same_for_all_machines_is_said_once() -> None:
    facts = {
        "client": {"qemu": "7.2", "start": "cold", "failed_clone": "no space"},
        "server": {"qemu": "7.2", "start": "clone"},
    }
    assert joined_facts(facts) == {
        "qemu": "7.2",
        "start": "client: cold, server: clone",
        "failed_clone": "client: no space, server: none",
    }
    assert joined_facts({"machine": facts["client"]}) == facts["client"]
