"""The script that makes the databases' first content."""

from __future__ import annotations

import subprocess

import pytest

from discovery_deploy.software import builds, seed
from discovery_deploy.software.seed import Content


@pytest.mark.parametrize("content", ["keystone", "all"])
def test_the_script_is_one(content: Content) -> None:
    subprocess.run(["bash", "-n", "-c", seed.seed_script(content)], check=True)


def test_keystone_alone_makes_nothing_else() -> None:
    script = seed.seed_script("keystone")
    assert "for database in keystone; do" in script
    assert "job keystone\n" in script
    assert "nova" not in script


def test_all_services_have_their_tables() -> None:
    script = seed.seed_script("all")
    assert "for database in keystone placement glance neutron nova_api nova_cell0 nova; do" in script
    for name in ("keystone", "placement", "glance", "neutron", "nova_api", "nova"):
        assert f"job {name}\n" in script
    assert "map_cell0" not in script


def test_the_seed_of_keystone_alone_does_not_depend_on_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    before = seed.seed_script("keystone")
    monkeypatch.setitem(seed.MAKE, "nova", "make_nova() { false; }\n")
    assert seed.seed_script("keystone") == before


def test_what_hosts_need_follows_from_the_services() -> None:
    assert seed.content_for(("keystone",)) == "keystone"
    assert seed.content_for(("keystone", "placement")) == "all"
    assert builds.variant(("keystone",)) == "base"
    assert builds.variant(("keystone", "glance")) == "full"
    few, many = (builds.inputs("2025.1", services) for services in (("keystone",), ("keystone", "glance")))
    assert few.image != many.image
    assert few.openstack != many.openstack
    assert few.rally == many.rally


def test_a_job_that_fails_ends_the_script_and_is_quoted() -> None:
    """The script's own way to run jobs, with jobs that only speak."""
    begin = seed.BEGIN[seed.BEGIN.index("jobs=()") : seed.BEGIN.index("serve --skip-networking")]
    jobs = (
        "mkdir -p /tmp/seed-test.$$; "
        "make_good() { echo fine; }\nmake_bad() { echo first; false; echo never; }\n"
        "job good\njob bad\nfinished\necho end\n"
    )
    script = (begin + jobs).replace("/run/seed/", "/tmp/seed-test.$$/")
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == "first\n"
