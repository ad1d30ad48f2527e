"""Ansible's view of the hosts."""

from __future__ import annotations

import json
from pathlib import Path

from discovery_deploy.cloud import inventory, variables
from tests.leased import ALL, ENVIRONMENTS, GALERA, MARIADB, SECRETS, TOPOLOGIES, experiment, lease

CONFIG, KEY = Path("/w/ssh_config"), Path("/w/id")


def test_the_whole_inventory_of_a_galera() -> None:
    asked = experiment(GALERA)
    assert inventory.inventory(asked, lease(asked), CONFIG, KEY) == {
        "all": {
            "vars": {
                "ansible_user": "root",
                "ansible_python_interpreter": "/usr/bin/python3",
                "ansible_ssh_private_key_file": "/w/id",
                "ansible_ssh_common_args": "-F /w/ssh_config",
            },
            "hosts": {
                "rennes-1": {"ansible_host": "10.64.0.10"},
                "ny-control": {"ansible_host": "10.64.1.10"},
                "ny-data": {"ansible_host": "10.64.1.11"},
                "ny-bench": {"ansible_host": "10.64.1.12"},
                "ny-compute": {"ansible_host": "10.64.1.13"},
                "oslo-1": {"ansible_host": "10.64.2.10"},
            },
            "children": {
                "bench": {"hosts": {"rennes-1": {}, "ny-bench": {}}},
                "compute": {"hosts": {"rennes-1": {}, "ny-compute": {}}},
                "control": {"hosts": {"rennes-1": {}, "ny-control": {}, "oslo-1": {}}},
                "database": {"hosts": {"rennes-1": {}, "ny-data": {}, "oslo-1": {}}},
                "galera": {"hosts": {"rennes-1": {}, "ny-data": {}, "oslo-1": {}}},
                "keystone": {"hosts": {"rennes-1": {}, "ny-control": {}, "oslo-1": {}}},
                "memcached": {"hosts": {"rennes-1": {}, "ny-control": {}, "oslo-1": {}}},
                "prepare_keystone": {"hosts": {"rennes-1": {}, "ny-control": {}, "oslo-1": {}}},
                "prepare_memcached": {"hosts": {"rennes-1": {}, "ny-control": {}, "oslo-1": {}}},
                "site_new_york": {"hosts": {"ny-control": {}, "ny-data": {}, "ny-bench": {}, "ny-compute": {}}},
                "site_oslo": {"hosts": {"oslo-1": {}}},
                "site_rennes": {"hosts": {"rennes-1": {}}},
            },
        }
    }


def test_with_one_mariadb_its_host_alone_holds_it_but_others_of_the_role_are_prepared() -> None:
    asked = experiment(MARIADB)
    groups = inventory.inventory(asked, lease(asked), CONFIG, KEY)["all"]["children"]
    assert groups["mariadb"] == {"hosts": {"rennes-1": {}}}
    assert groups["database"] == {"hosts": {"rennes-1": {}, "ny-data": {}, "oslo-1": {}}}
    assert "galera" not in groups


def test_a_path_with_spaces_stays_one_word() -> None:
    asked = experiment(MARIADB)
    everything = inventory.inventory(asked, lease(asked), Path("/my work/ssh_config"), KEY)["all"]
    assert everything["vars"]["ansible_ssh_common_args"] == "-F '/my work/ssh_config'"


def test_variables_stand_with_their_hosts_and_the_inventory_alone_has_no_secret() -> None:
    asked = experiment(GALERA)
    bare = inventory.inventory(asked, lease(asked), CONFIG, KEY)
    whole = inventory.with_variables(bare, variables.variables(asked, lease(asked), SECRETS, ENVIRONMENTS))
    assert "secret" not in json.dumps(bare)
    data = "__ansible_unsafe"
    assert whole["all"]["hosts"]["ny-data"] == {
        "ansible_host": {data: "10.64.1.11"},
        "mariadb_site": {data: "new-york"},
        "mariadb_address": {data: "10.128.1.11"},
        "galera_segment": 1,
    }
    assert whole["all"]["vars"]["keystone_admin_password"] == {data: "admin-secret"}
    assert whole["all"]["vars"]["ansible_user"] == {data: "root"}


def groups(topology: str, **deployment: object) -> dict[str, list[str]]:
    asked = experiment(MARIADB, services=ALL, topology=TOPOLOGIES[topology], **deployment)
    children = inventory.inventory(asked, lease(asked), CONFIG, KEY)["all"]["children"]
    return {name: list(group["hosts"]) for name, group in children.items()}


CONTROL = ["rennes-1", "ny-control", "oslo-1"]


def test_services_stand_in_groups_after_where_the_topology_puts_them() -> None:
    for topology, where in (("regions", CONTROL), ("shared-state", CONTROL), ("centralized", ["rennes-1"])):
        found = groups(topology)
        for name in (*ALL, "rabbitmq", "ovn", "memcached"):
            assert found[name] == where, (topology, name)
    assert groups("cells")["nova"] == ["rennes-1", "ny-control"], "the API, and the conductor of the cell with computes"
    assert groups("cells")["rabbitmq"] == groups("cells")["site_mariadb"] == ["rennes-1", "ny-control"]
    assert groups("cells")["glance"] == groups("cells")["ovn"] == ["rennes-1"]
    assert groups("regions")["site_mariadb"] == CONTROL
    assert "site_mariadb" not in groups("centralized") | groups("shared-state")
    assert groups("shared-state")["glance_copies"] == CONTROL[1:]
    assert "glance_copies" not in groups("centralized") | groups("cells") | groups("regions")


def test_computes_are_all_hosts_with_the_role_and_open_vswitch_is_where_servers_are_real() -> None:
    assert groups("regions")["nova_compute"] == groups("regions")["compute"] == ["rennes-1", "ny-compute"]
    assert "open_vswitch" not in groups("regions")
    assert groups("cells", computes={"libvirt": 1})["open_vswitch"] == ["rennes-1", "ny-compute"]
    assert "nova_compute" not in groups("regions", computes={"fake": 0})


def test_hosts_are_prepared_for_every_topology_of_a_campaign() -> None:
    found = [groups(topology) for topology in TOPOLOGIES]
    prepared = [{name: hosts for name, hosts in one.items() if name.startswith("prepare_")} for one in found]
    assert all(one == prepared[0] for one in prepared)
    assert prepared[0]["prepare_nova"] == prepared[0]["prepare_site_mariadb"] == CONTROL
    assert prepared[0]["prepare_nova_compute"] == ["rennes-1", "ny-compute"]
    for one in found:
        used = {name for name in one if f"prepare_{name}" in one}
        assert used >= {*ALL, "nova_compute", "rabbitmq", "ovn"}
        assert all(set(one[name]) <= set(one[f"prepare_{name}"]) for name in used)
