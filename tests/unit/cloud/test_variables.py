"""What roles are told."""

from __future__ import annotations

import base64

import pytest

from discovery_deploy.cloud import variables
from discovery_deploy.cloud.variables import Secrets
from tests.leased import ENVIRONMENTS, GALERA, MARIADB, SECRETS, experiment, lease


def told(backend: dict[str, str], **deployment: object) -> variables.Variables:
    asked = experiment(backend, **deployment)
    return variables.variables(asked, lease(asked), SECRETS, ENVIRONMENTS)


def test_all_sites_use_the_one_mariadb() -> None:
    hosts = told(MARIADB).hosts
    databases = {hosts[name]["keystone_database"] for name in ("rennes-1", "ny-control", "oslo-1")}
    assert databases == {"mysql+pymysql://keystone:database-secret@10.128.0.10/keystone?charset=utf8"}


def test_each_site_uses_its_own_galera_master() -> None:
    hosts = told(GALERA).hosts
    used = {name: hosts[name]["keystone_database"] for name in ("rennes-1", "ny-control", "oslo-1")}
    assert used == {
        "rennes-1": "mysql+pymysql://keystone:database-secret@10.128.0.10/keystone?charset=utf8",
        "ny-control": "mysql+pymysql://keystone:database-secret@10.128.1.11/keystone?charset=utf8",
        "oslo-1": "mysql+pymysql://keystone:database-secret@10.128.2.10/keystone?charset=utf8",
    }


def test_galera_has_a_member_and_a_segment_per_site() -> None:
    assert told(GALERA).shared["galera_members"] == [
        {"host": "rennes-1", "site": "rennes", "address": "10.128.0.10", "segment": 0},
        {"host": "ny-data", "site": "new-york", "address": "10.128.1.11", "segment": 1},
        {"host": "oslo-1", "site": "oslo", "address": "10.128.2.10", "segment": 2},
    ]


def test_keystone_listens_on_its_site_address_and_is_a_region_of_its_own() -> None:
    told_all = told(MARIADB, workers=5)
    assert told_all.shared["keystone_urls"] == {
        "rennes": "http://10.128.0.10:5000/v3",
        "new-york": "http://10.128.1.10:5000/v3",
        "oslo": "http://10.128.2.10:5000/v3",
    }
    own = told_all.hosts["ny-control"]
    assert (own["keystone_site"], own["keystone_address"], own["keystone_port"]) == ("new-york", "10.128.1.10", 5000)
    assert told_all.shared["keystone_workers"] == 5


def test_the_cache_is_the_sites_memcached_or_the_releases_own_default() -> None:
    assert told(MARIADB).hosts["oslo-1"]["keystone_memcached"] == "10.128.2.10:11211"
    assert told(MARIADB, cache="none").hosts["oslo-1"]["keystone_memcached"] == ""


def test_rally_asks_the_keystone_of_its_own_site() -> None:
    told_all = told(MARIADB)
    assert told_all.hosts["ny-bench"] == {
        "rally_region": "new-york",
        "rally_auth_url": "http://10.128.1.10:5000/v3",
        "rally_user": "rally-new-york",
    }
    assert "rally_region" not in told_all.hosts["oslo-1"]
    assert variables.rally_command(ENVIRONMENTS) == (
        "/opt/discovery-deploy/rally-bb/bin/python",
        "/var/lib/discovery-deploy/rally/rally.conf",
    )


@pytest.mark.parametrize(("asked", "rounds"), [(4, 4), (31, 31), (3, 12), (True, 12), ("14", 14), ("x", 12)])
def test_users_of_ours_have_passwords_as_keystone_makes_them(asked: object, rounds: int) -> None:
    overrides = {"keystone": {"identity": {"password_hash_rounds": asked}}}
    assert told(MARIADB, overrides=overrides).shared["keystone_hash_rounds"] == rounds
    assert told(MARIADB).shared["keystone_hash_rounds"] == 12


def test_equal_experiments_give_equal_variables() -> None:
    assert told(GALERA).model_dump_json() == told(GALERA).model_dump_json()


def test_secrets_are_new_each_time_and_long_enough() -> None:
    first, second = Secrets.generate(), Secrets.generate()
    assert not set(first.values()) & set(second.values())
    assert len(set(first.values())) == len(first.values()) == 13
    assert all(len(value) >= 32 for value in first.values())


def test_fernet_keys_are_32_bytes_in_url_safe_base64() -> None:
    for key in Secrets.generate().token_keys:
        assert len(base64.urlsafe_b64decode(key)) == 32


def test_secrets_survive_a_file() -> None:
    secrets = Secrets.generate()
    assert Secrets.model_validate_json(secrets.model_dump_json()) == secrets


def test_a_secrets_file_of_an_older_version_keeps_what_it_has_and_gets_the_rest() -> None:
    later = {"service_password", "broker_password", "broker_cookie", "bench_password"}
    old = Secrets.model_validate(Secrets.generate().model_dump(exclude=later))
    completed = old.completed()
    assert completed.model_dump(exclude=later) == old.model_dump(exclude=later)
    assert all(len(getattr(completed, name)) >= 32 for name in later)
    assert completed.completed() == completed
