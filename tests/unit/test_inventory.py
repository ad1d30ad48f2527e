"""Ansible's view of the hosts."""

from __future__ import annotations

import json
from pathlib import Path

from discovery_deploy import inventory, variables
from tests.leased import ENVIRONMENTS, GALERA, MARIADB, SECRETS, experiment, lease

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
                "oslo-1": {"ansible_host": "10.64.2.10"},
            },
            "children": {
                "bench": {"hosts": {"rennes-1": {}, "ny-bench": {}}},
                "control": {"hosts": {"rennes-1": {}, "ny-control": {}, "oslo-1": {}}},
                "database": {"hosts": {"rennes-1": {}, "ny-data": {}, "oslo-1": {}}},
                "galera": {"hosts": {"rennes-1": {}, "ny-data": {}, "oslo-1": {}}},
                "site_new_york": {"hosts": {"ny-control": {}, "ny-data": {}, "ny-bench": {}}},
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
    assert whole["all"]["hosts"]["ny-data"] == {
        "ansible_host": "10.64.1.11",
        "mariadb_address": "10.128.1.11",
        "galera_segment": 1,
    }
    assert whole["all"]["vars"]["keystone_admin_password"] == "admin-secret"
    assert whole["all"]["vars"]["ansible_user"] == "root"
