"""Which host is sent what."""

from __future__ import annotations

import pytest

from discovery_deploy.software.builds import Environments
from discovery_deploy.software.software import host_problem, hosts_environments
from discovery_deploy.software.stack import Environment
from tests.leased import ALL, ENVIRONMENTS, GALERA, MARIADB, experiment, lease

DERIVED = {
    name: Environment(name=f"openstack-{name}", hash=name, versions={}) for name in ("keystone", "glance", "nova")
}
WITH_DERIVED: Environments = ENVIRONMENTS.model_copy(update={"services": DERIVED})


def test_keystone_alone() -> None:
    asked = experiment(GALERA)
    without_guest = ENVIRONMENTS.model_copy(update={"guest": None})
    assert hosts_environments(asked, lease(asked), without_guest) == {
        "rennes-1": ("database-cc", "openstack-aa", "rally-bb"),
        "ny-control": ("openstack-aa",),
        "ny-data": ("database-cc",),
        "ny-bench": ("rally-bb",),
        "ny-compute": (),
        "oslo-1": ("database-cc", "openstack-aa"),
    }


def test_all_services_each_in_its_own_environment() -> None:
    asked = experiment(MARIADB, services=ALL)
    found = hosts_environments(asked, lease(asked), WITH_DERIVED)
    python = ("openstack-aa", "openstack-glance", "openstack-keystone", "openstack-nova")
    assert found["ny-control"] == ("database-cc", "guest-dd", *python)
    assert found["ny-compute"] == ("guest-dd", "openstack-nova")
    assert found["ny-data"] == ("database-cc",)
    assert found["ny-bench"] == ("rally-bb",)


def test_a_second_control_host_has_something_only_when_a_service_is_placed_there() -> None:
    document = experiment(MARIADB, services=ALL).model_dump(mode="json", by_alias=True, exclude_unset=True)
    document["sites"][2]["hosts"].append({"name": "oslo-2", "roles": ["control"]})
    asked = type(experiment(MARIADB)).model_validate(document)
    assert hosts_environments(asked, lease(asked), ENVIRONMENTS)["oslo-2"] == ()
    document["deployment"]["placement"] = {"glance": ["oslo-2"]}
    placed = type(asked).model_validate(document)
    assert "openstack-aa" in hosts_environments(placed, lease(placed), ENVIRONMENTS)["oslo-2"]


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("debian|12|x86_64|yes\n", ""),
        ("debian|11|x86_64|yes\n", "runs debian 11, not Debian 12"),
        ("debian||x86_64|yes\n", "runs debian, not Debian 12"),
        ("ubuntu|22.04|x86_64|yes\n", "runs ubuntu 22.04, not Debian 12"),
        (
            "debian|12|aarch64|yes\n",
            "has a processor of the kind aarch64; the environments are made on x86_64",
        ),
        ("debian|12|x86_64|\n", "has no /usr/bin/python3.11"),
        ("Welcome!\n", "does not tell what it is: Welcome!"),
    ],
)
def test_what_a_host_must_be(answer: str, problem: str) -> None:
    assert host_problem(answer, "x86_64") == problem
