"""What is asked of Grid'5000, and what is made of its answers."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from discovery_deploy.experiment.model import Experiment
from discovery_deploy.system.errors import TestbedError
from discovery_deploy.testbeds import g5k_request
from discovery_deploy.testbeds.g5k_request import Job

PARAVANCE = {"g5k_site": "rennes", "cluster": "paravance"}
GRISOU = {"g5k_site": "nancy", "cluster": "grisou"}


def experiment(hosts: dict[str, int], **provider: Any) -> Experiment:
    asked = [
        {"name": site, "hosts": [{"name": f"{site}-{number}"} for number in range(1, count + 1)]}
        for site, count in hosts.items()
    ]
    section = {"type": "g5k", **({"default": PARAVANCE} if "default" not in provider else {}), **provider}
    return Experiment.model_validate(
        {"name": "mine", "sites": asked, "deployment": {"backend": {"type": "galera"}}, "provider": section}
    )


def job(site: str, *machines: str, **more: Any) -> Job:
    return Job(
        g5k_site=site, uid=more.pop("uid", 1), name="discovery-deploy-mine", state=more.pop("state", "running"),
        machines=tuple(f"{name}.{site}.grid5000.fr" for name in machines), **more,
    )  # fmt: skip


def test_sites_at_the_same_place_share_a_pool_and_ask_for_one_machine_a_host() -> None:
    pools = g5k_request.pools(experiment({"a": 2, "b": 1, "c": 3}, sites={"b": GRISOU}))
    assert [(pool.label, pool.hosts) for pool in pools] == [
        ("rennes-paravance", ("a-1", "a-2", "c-1", "c-2", "c-3")),
        ("nancy-grisou", ("b-1",)),
    ]


def test_of_the_servers_that_are_named_no_more_are_asked_for_than_there_are_hosts() -> None:
    servers = ["paravance-7", "parasilo-2.rennes.grid5000.fr", "paravance-9"]
    pools = g5k_request.pools(experiment({"a": 2}, default={"g5k_site": "rennes", "servers": servers}))
    assert [(pool.cluster, pool.servers, pool.hosts) for pool in pools] == [
        ("paravance", ("paravance-7.rennes.grid5000.fr",), ("a-1",)),
        ("parasilo", ("parasilo-2.rennes.grid5000.fr",), ("a-2",)),
    ]


def test_the_plain_configuration() -> None:
    asked = experiment({"a": 1, "b": 2}, sites={"b": GRISOU}, project="grp", reservation="2026-12-01 19:00:00")
    assert g5k_request.configuration(asked, "/keys.pub") == {
        "job_name": "discovery-deploy-mine",
        "job_type": [],
        "queue": "default",
        "walltime": "02:00:00",
        "reservation": "2026-12-01 19:00:00",
        "project": "grp",
        "resources": {
            "machines": [
                {"roles": ["rennes-paravance"], "cluster": "paravance", "nodes": 1, "primary_network": "net-rennes"},
                {"roles": ["nancy-grisou"], "cluster": "grisou", "nodes": 2, "primary_network": "net-nancy"},
            ],
            "networks": [
                {"id": "net-rennes", "type": "prod", "roles": ["net"], "site": "rennes"},
                {"id": "net-nancy", "type": "prod", "roles": ["net"], "site": "nancy"},
            ],
        },
    }


@pytest.mark.parametrize(
    ("network", "networks", "of_grisou"),
    [
        ("kavlan", {"rennes": "kavlan", "nancy": "kavlan"}, "net-nancy"),
        ("kavlan-global", {"rennes": "kavlan-global"}, "net-rennes"),
    ],
)
def test_a_deployment_in_vlans(network: str, networks: dict[str, str], of_grisou: str) -> None:
    asked = experiment({"a": 1, "b": 1}, sites={"b": GRISOU}, environment="debian12-min", network=network)
    given = g5k_request.configuration(asked, "/keys.pub")
    assert (given["job_type"], given["env_name"], given["key"]) == (["deploy"], "debian12-min", "/keys.pub")
    assert {one["site"]: one["type"] for one in given["resources"]["networks"]} == networks
    assert given["resources"]["machines"][1]["primary_network"] == of_grisou


def test_servers_are_asked_for_by_name() -> None:
    default = {"g5k_site": "rennes", "servers": ["paravance-7", "paravance-8"]}
    machines = g5k_request.configuration(experiment({"a": 1}, default=default), "/k")["resources"]["machines"]
    assert machines == [
        {
            "roles": ["rennes-paravance-paravance-7"], "servers": ["paravance-7.rennes.grid5000.fr"],
            "primary_network": "net-rennes",
        }
    ]  # fmt: skip


def test_jobs_that_hold_what_is_asked_are_kept_and_others_are_not() -> None:
    pools = g5k_request.pools(experiment({"a": 2, "b": 1}, sites={"b": GRISOU}))
    fitting = [job("rennes", "paravance-1", "paravance-3"), job("nancy", "grisou-1")]
    assert g5k_request.misfits(pools, fitting) == []
    assert g5k_request.misfits(pools, [job("rennes", state="waiting")]) == []
    assert g5k_request.misfits(pools, [job("rennes", "paravance-1", "parasilo-1"), fitting[1]]) == [
        "rennes: 1 machines of paravance, 2 are asked for"
    ]
    assert g5k_request.misfits(pools[:1], fitting) == ["nothing is asked at nancy any more"]


def test_a_server_by_name_is_not_counted_for_its_cluster_too() -> None:
    servers = {"g5k_site": "rennes", "servers": ["paravance-1"]}
    pools = g5k_request.pools(experiment({"a": 1, "b": 1}, sites={"b": servers}))
    assert g5k_request.misfits(pools, [job("rennes", "paravance-1", "paravance-2")]) == []
    assert g5k_request.misfits(pools, [job("rennes", "paravance-1")]) == [
        "rennes: 0 machines of paravance, 1 are asked for"
    ]


def test_hosts_get_the_same_machines_in_whatever_order_they_come() -> None:
    pools = g5k_request.pools(experiment({"a": 2}))
    names = [f"paravance-{number}.rennes.grid5000.fr" for number in (10, 2, 3)]
    want = {"a-1": names[1], "a-2": names[2]}
    assert g5k_request.assigned(pools, {"rennes-paravance": names}) == want
    assert g5k_request.assigned(pools, {"rennes-paravance": names[::-1]}) == want
    with pytest.raises(TestbedError, match="gave 1 machines of paravance at rennes, 2 were asked for"):
        g5k_request.assigned(pools, {"rennes-paravance": names[:1]})


SAID = """\
identity 0f1e\r
connection 10.0.0.1 40000 10.1.2.3 22\r
system debian 12\r
python /usr/bin/python3\r
device 1: lo    inet 127.0.0.1/8 scope host lo\\       valid_lft forever\r
device 2: eno1@if7    inet 10.1.2.3/20 brd 10.1.15.255 scope global eno1\\       valid_lft forever\r
"""


def test_a_machine_says_where_ssh_came_in() -> None:
    facts = g5k_request.facts("paravance-1.rennes.grid5000.fr", "paravance-1.rennes.grid5000.fr", SAID)
    assert (facts.site_address, facts.site_device, facts.identity) == ("10.1.2.3", "eno1", "0f1e")
    assert g5k_request.unsuitable([facts]) == []
    with pytest.raises(TestbedError, match=r"paravance-1: did not say .*it said 2001:db8::1; .* are 10\.1\.2\.3, 127"):
        g5k_request.facts("paravance-1", "paravance-1", SAID.replace(" 10.1.2.3 22", " 2001:db8::1 22"))


def test_another_system_or_no_python_is_told_with_the_machine() -> None:
    for change, problem in (
        (("debian 12", "debian 11"), "p-1 has debian 11, not debian 12"),
        (("python /usr/bin/python3", "python "), "p-1 has no python3"),
    ):
        facts = g5k_request.facts("p-1", "p-1", SAID.replace(*change))
        assert g5k_request.unsuitable([facts]) == [problem]


def test_a_key_with_a_quote_never_reaches_a_shell() -> None:
    assert "'ssh-ed25519 AAAA= a@b'" in g5k_request.setup("ssh-ed25519 AAAA= a@b\n")
    with pytest.raises(ValueError, match="not a public key"):
        g5k_request.setup("ssh-ed25519 AAAA'; reboot; '")


def test_the_request_in_words() -> None:
    asked = experiment({"a": 1, "b": 2}, sites={"b": GRISOU}, walltime="01:30:00", environment="debian12-min")
    text = g5k_request.request_text(asked, {"rennes/paravance": 16, "nancy/grisou": 20})
    assert text.splitlines()[1:] == [
        "  rennes: 1 machine of paravance: 1 x 16 cores x 1.5 h = 24 core-hours (a-1)",
        "  nancy: 2 machines of grisou: 2 x 20 cores x 1.5 h = 60 core-hours (b-1, b-2)",
        "  in all: 3 machines, 84 core-hours",
    ]
    assert "deploys debian12-min" in text
    partly = g5k_request.request_text(asked, {"rennes/paravance": 16}, "the API does not answer")
    assert partly.endswith("  in all: 3 machines, core-hours not known (the API does not answer)\n")


def test_a_reservation_in_the_past_is_warned_of() -> None:
    asked = experiment({"a": 1, "b": 1}, reservation="2017-05-03 19:00:01")
    late = g5k_request.request_text(asked, {}, now=datetime(2026, 1, 1))
    assert "  warning: the reservation begins in the past; leave `reservation` out for: now" in late.splitlines()
    assert "warning" not in g5k_request.request_text(asked, {}, now=datetime(2017, 5, 3, 19, 0, 0))
    assert "warning" not in g5k_request.request_text(asked, {})
    assert not g5k_request.is_past("tomorrow", datetime(2026, 1, 1))


@pytest.mark.parametrize(
    ("text", "seconds"), [("02:00:00", 7200), ("00:00:30", 30), ("1:30", 5400), ("100:00:01", 360001)]
)
def test_walltimes(text: str, seconds: int) -> None:
    assert g5k_request.seconds_of(text) == seconds


def test_walltimes_are_written_in_whole_minutes_never_less() -> None:
    assert [g5k_request.walltime_of(seconds) for seconds in (0, 1, 60, 3601, 360000)] == [
        "00:00:00", "00:01:00", "00:01:00", "01:01:00", "100:00:00",
    ]  # fmt: skip


def test_the_hosts_go_when_the_first_job_ends() -> None:
    jobs = [job("rennes", starts_at=1000.0, walltime_s=7200.0), job("nancy", starts_at=1060.0, walltime_s=3600.0)]
    assert g5k_request.ends_at(jobs) == 4660.0
    assert g5k_request.ends_at([*jobs, job("lyon", state="waiting")]) is None
    assert g5k_request.ends_at([]) is None


def test_a_walltime_that_is_too_short_is_said_with_what_to_ask_for() -> None:
    assert g5k_request.time_warning(ends=10_000, now=1_000, runs_left=10, seconds_per_run=900, name="f.yaml") is None
    warning = g5k_request.time_warning(ends=10_000, now=1_000, runs_left=11, seconds_per_run=900, name="f.yaml")
    assert warning == (
        "the hosts go in 2 h 30 min, and 11 runs of about 15 min need 2 h 45 min: "
        "ask for more with `discovery-deploy extend f.yaml 00:15:00`"
    )


def test_jobs_belong_to_experiments_by_name() -> None:
    assert g5k_request.experiment_of(g5k_request.job_name("mine")) == "mine"
    assert g5k_request.experiment_of("somebody-elses") is None
