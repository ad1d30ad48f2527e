"""The provider around another one, and its calls to machines, with programs of this machine in place of ssh."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from discovery_deploy.agent import machine_verbs
from discovery_deploy.agent.conversation import Conversation
from discovery_deploy.agent.machine import MachineError
from discovery_deploy.agent.plan import TcProgram
from discovery_deploy.experiment.lease import Lease, LeasedHost
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.hosts import nested
from discovery_deploy.hosts.base_image import packed_tree, tree_name
from discovery_deploy.hosts.nested import Nested
from discovery_deploy.system.agents import Agents
from discovery_deploy.system.errors import TestbedError
from discovery_deploy.system.progress import Progress
from discovery_deploy.testbeds.base import Lack
from tests.unit.hosts.test_nesting import experiment

VAGRANT: dict[str, Any] = {"type": "vagrant", "hosts_per_machine": 2}
MANY = {
    "type": "static",
    "hosts_per_machine": 2,
    "machines": [{"host": f"big-{number}", "address": f"192.0.2.{number}"} for number in (1, 2, 3)],
}


class FakeInner:
    """A provider that notes what it is asked, in a list shared with the machines."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.known: set[str] = set()
        self.dead: list[str] = []

    def lacks(self) -> list[Lack]:
        return [Lack(what="a thing", command="get it")]

    def reserve(
        self, asked: Experiment, public_key: str, image: Path, progress: Progress, workspace: Path | None = None
    ) -> Lease:
        names = [(site.name, host) for site in asked.sites for host in site.hosts]
        self.log.append(f"reserve {' '.join(host.name for _, host in names)}")
        if names[0][0].startswith("machines-"):  # with a key of its own for them
            assert workspace is not None
            assert (workspace / "id.pub").read_text().strip() == public_key
        else:
            assert public_key == "ssh-ed25519 ME"
        self.known.add(asked.name)
        return Lease(
            provider=asked.provider.type,
            experiment=asked.name,
            hosts=tuple(
                LeasedHost(
                    name=host.name, site=site, roles=host.roles, management_address=f"192.0.2.{number}",
                    site_address=f"198.51.100.{number}", ssh={"Port": "2222"},
                )
                for number, (site, host) in enumerate(names)
            ),
            site_subnets={}, site_devices={}, site_gateways={}, identities={}, router="hosts", shaped="hosts",
            software="shipped",
        )  # fmt: skip

    def dead_hosts(self, lease: Lease) -> list[str]:
        return self.dead

    def shape(self, lease: Lease, program: TcProgram) -> None:
        self.log.append("inner shape")

    def read_shape(self, lease: Lease) -> dict[str, Any]:
        return {"of": "inner"}

    def router_facts(self, lease: Lease) -> str:
        return "inner"

    def release(self, experiment_name: str, progress: Progress) -> None:
        self.log.append(f"release {experiment_name}")
        self.known.discard(experiment_name)

    def holder(self, experiment_name: str) -> Path | None:
        return Path("/of/inner") if experiment_name in self.known else None

    def experiments(self) -> list[str]:
        return sorted(self.known)


class FakeMachines:
    """What machines answer, in place of `agents.Agents`."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.slots: dict[str, list[int]] = {}
        self.missing: dict[str, str] = {}
        self.netem = True
        self.away: set[str] = set()
        self.silent: dict[str, list[str]] = {}
        self.requests: dict[tuple[str, str], Mapping[str, Any]] = {}

    def bring(self, name: str) -> None:
        if name in self.away:
            raise TestbedError(f"{name}: not reachable by ssh: no route", "")

    def ask(self, name: str, verb: str, request: Mapping[str, Any], *_: Any, **__: Any) -> Any:
        if name in self.away:
            raise TestbedError(f"{name}: not reachable by ssh: no route", "")
        self.requests[name, verb] = request
        if verb in ("image", "install", "up", "down", "shape"):
            self.log.append(f"{name} {verb}")
        hosts = [host["name"] for host in request.get("plan", {}).get("hosts", ())]
        answers: dict[str, Callable[[], Any]] = {
            "look": lambda: {
                "slots": self.slots.get(name, [0, 1, 2]),
                "missing": self.missing,
                "images": [],
                "netem": self.netem,
            },
            "up": lambda: {host: {"machine_id": f"{host}@{name}", "host_key": "key"} for host in hosts},
            "reach": lambda: self.silent.get(name, []),
            "status": lambda: {"dead": hosts[:1], "router": False},
            "read": lambda: {"qdisc": {name: []}},
            "facts": lambda: {"mode": "netns", "kernel": "6.1", "scheduling": "kernel", "preloaded": ""},
        }
        return answers.get(verb, lambda: None)()


class Bed:
    def __init__(self, folder: Path) -> None:
        self.log: list[str] = []
        self.inner, self.machines = FakeInner(self.log), FakeMachines(self.log)
        self.folder, self.said = folder, list[str]()
        self.image = folder / "image"
        (self.image / "usr").mkdir(parents=True)

    def provider(self, name: str = "vagrant") -> Nested:
        return Nested(name, self.inner, self.folder / "state")

    def reserve(self, asked: Experiment, name: str = "vagrant") -> Lease:
        return self.provider(name).reserve(asked, "ssh-ed25519 ME", self.image, self.said.append, self.folder / "work")


@pytest.fixture
def bed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bed:
    bed = Bed(tmp_path)
    monkeypatch.setattr(Agents, "bring", lambda self, name: bed.machines.bring(name))
    monkeypatch.setattr(Agents, "ask", lambda self, *words, **more: bed.machines.ask(*words, **more))
    monkeypatch.setattr("discovery_deploy.system.remote.CONTROL_SOCKETS", tmp_path / "run")
    return bed


class TestReserve:
    def test_machines_then_image_then_hosts(self, bed: Bed) -> None:
        lease = bed.reserve(experiment(VAGRANT, 1, 2))
        assert bed.log[0] == "reserve machine-1 machine-2"
        assert sorted(bed.log[1:3]) == ["machine-1 image", "machine-2 image"]
        assert sorted(bed.log[3:]) == ["machine-1 up", "machine-2 up"]
        assert [host.name for host in lease.hosts] == ["s0-1", "s1-1", "s1-2"]
        assert lease.identities["s1-2"] == "s1-2@machine-2"
        plan = bed.machines.requests["machine-1", "up"]["plan"]
        assert plan["peers"][0]["remote"] == "198.51.100.1"
        assert plan["authorized_keys"] == ["ssh-ed25519 ME"]
        assert plan["base"].startswith("/var/lib/discovery-deploy-machine/images/image-")

    def test_hosts_are_reached_by_way_of_their_machine(self, bed: Bed) -> None:
        lease = bed.reserve(experiment(VAGRANT, 1, 2))
        command = lease.at("s1").ssh["ProxyCommand"]
        assert command.startswith("sh -c ")
        assert "machine-2" in command
        assert "machine-1" not in command
        assert command.count("%") == 2
        assert " -n machine-2 true" in command  # it would eat what ssh says to the host
        config = Path(lease.details["machines_ssh_config"])
        assert config.stat().st_mode & 0o777 == 0o600
        assert (
            "Host machine-2 192.0.2.1\n  HostName 192.0.2.1\n  HostKeyAlias machine-2\n  Port 2222\n"
            in config.read_text()
        )
        assert f'IdentityFile "{config.parent / "id"}"' in config.read_text()
        assert nested.machine_remote(lease).ssh_config == config
        machines = nested.machine_lease(lease)
        assert machines is not None
        assert machines.software == "shipped"

    def test_the_slot_is_one_that_is_free_everywhere_and_is_kept(self, bed: Bed) -> None:
        bed.machines.slots = {"machine-1": [3, 5, 9], "machine-2": [4, 5, 9]}
        assert bed.reserve(experiment(VAGRANT, 2, 2)).site_subnets["s0"] == "10.133.0.0/24"
        bed.machines.slots = {"machine-1": [3, 4, 5], "machine-2": [3, 4, 5]}
        assert bed.reserve(experiment(VAGRANT, 2, 2)).site_subnets["s0"] == "10.133.0.0/24"

    def test_no_common_slot_is_a_failure_that_names_the_machines(self, bed: Bed) -> None:
        bed.machines.slots = {"machine-1": [3], "machine-2": [4]}
        with pytest.raises(TestbedError, match="no slot is free on all of machine-1, machine-2"):
            bed.reserve(experiment(VAGRANT, 2, 2))

    def test_missing_packages_are_installed_from_the_network(self, bed: Bed) -> None:
        bed.machines.missing = {"systemd-nspawn": "systemd-container", "ip": "iproute2", "tc": "iproute2"}
        bed.reserve(experiment({**VAGRANT, "packages": "network"}, 1))
        assert bed.machines.requests["machine-1", "install"] == {"packages": ["iproute2", "systemd-container"]}

    def test_what_only_a_kernel_without_netem_needs_is_installed_once_that_is_known(self, bed: Bed) -> None:
        looks: list[dict[str, Any]] = [
            {"missing": {"tc": "iproute2"}, "netem": True},
            {"missing": {"linux.uml": "user-mode-linux", "tcc": "tcc"}, "netem": False},
        ]
        answer = bed.machines.ask

        def call(name: str, verb: str, *words: Any, **more: Any) -> Any:
            found = answer(name, verb, *words, **more)
            return {**found, **looks.pop(0)} if verb == "look" else found

        bed.machines.ask = call  # type: ignore[method-assign]
        bed.reserve(experiment({**VAGRANT, "packages": "network"}, 1))
        assert looks == []
        assert bed.log[:3] == ["reserve machine-1", "machine-1 install", "machine-1 install"]
        assert bed.machines.requests["machine-1", "install"] == {"packages": ["tcc", "user-mode-linux"]}

    def test_carried_packages_lack_them_and_that_is_said(self, bed: Bed) -> None:
        bed.machines.missing = {"systemd-nspawn": "systemd-container"}
        with pytest.raises(
            TestbedError, match="machine-1: lacks the commands systemd-nspawn, and packages are"
        ) as error:
            bed.reserve(experiment({**VAGRANT, "packages": "carried"}, 1))
        assert "systemd-container" in error.value.advice

    def test_a_kernel_without_netem_is_told_before_anything_is_sent(self, bed: Bed) -> None:
        bed.machines.netem = False
        with pytest.raises(TestbedError, match="machine-1: its kernel has no netem"):
            bed.reserve(experiment(VAGRANT, 2, 2))
        assert bed.log == ["reserve machine-1 machine-2"]
        bed.reserve(experiment(VAGRANT, 2))  # one machine may have a router in User-Mode Linux

    def test_tunnels_through_which_nothing_passes_are_named(self, bed: Bed) -> None:
        bed.machines.silent = {"machine-1": ["machine-2"]}
        with pytest.raises(TestbedError, match="machine-1 -> machine-2") as error:
            bed.reserve(experiment(VAGRANT, 2, 2))
        assert "UDP port 24789" in error.value.advice

    def test_machines_that_are_no_longer_needed_are_left_before_they_go(self, bed: Bed) -> None:
        bed.reserve(experiment(VAGRANT, 2, 2))
        bed.log.clear()
        bed.reserve(experiment(VAGRANT, 2))
        assert bed.log[:2] == ["machine-2 down", "reserve machine-1"]

    def test_all_machines_that_fail_are_told(self, bed: Bed) -> None:
        bed.machines.away = {"machine-1", "machine-2"}
        with pytest.raises(TestbedError, match=r"machine-1: not reachable.*\nmachine-2: not reachable"):
            bed.reserve(experiment(VAGRANT, 2, 2))

    def test_direct_hosts_are_the_inner_providers_alone(self, bed: Bed) -> None:
        direct = experiment({"type": "vagrant"}, 1).model_copy(update={"name": "direct"})
        lease = bed.reserve(direct)
        assert bed.log == ["reserve s0-1"]
        assert nested.machine_lease(lease) is None
        assert not (bed.folder / "state").exists()
        bed.provider().shape(lease, TcProgram(super_packets=True, devices={}))
        assert bed.provider().read_shape(lease) == {"of": "inner"}
        assert bed.provider().router_facts(lease) == "inner"
        assert bed.provider().holder("direct") == Path("/of/inner")

    def test_nested_hosts_are_given_back_before_they_become_direct(self, bed: Bed) -> None:
        bed.reserve(experiment(VAGRANT, 1))
        bed.log.clear()
        bed.reserve(experiment({"type": "vagrant"}, 1))
        assert bed.log == ["machine-1 down", "release nested", "reserve s0-1"]


class TestWhileItRuns:
    def test_the_dead_are_hosts_routers_and_all_of_a_machine_that_is_gone(self, bed: Bed) -> None:
        lease = bed.reserve(experiment(VAGRANT, 2, 2, 2))
        bed.inner.dead = ["machine-2"]
        bed.machines.away = {"machine-3"}
        assert bed.provider().dead_hosts(lease) == [
            "s0-1", "WAN router of machine-1", "s1-1", "s1-2", "s2-1", "s2-2",
        ]  # fmt: skip

    def test_a_program_goes_where_its_sites_are(self, bed: Bed) -> None:
        lease = bed.reserve(experiment(VAGRANT, 2, 2))
        bed.log.clear()
        bed.provider().shape(lease, TcProgram(super_packets=False, devices={"vec1": ("qdisc del dev vec1 root",)}))
        assert sorted(bed.log) == ["machine-1 shape", "machine-2 shape"]
        told = {name: bed.machines.requests[name, "shape"]["program"] for name in ("machine-1", "machine-2")}
        assert told["machine-1"] == {"super_packets": False, "devices": {}}
        assert told["machine-2"] == {"super_packets": False, "devices": {"vec1": ["qdisc del dev vec1 root"]}}
        assert bed.provider().read_shape(lease) == {"qdisc": {"machine-1": [], "machine-2": []}}
        assert bed.provider().router_facts(lease).startswith("2 WAN routers (netns, kernel 6.1)")

    def test_who_holds_it_is_the_workspace_that_reserved(self, bed: Bed) -> None:
        bed.reserve(experiment(VAGRANT, 1))
        assert bed.provider().holder("nested") == bed.folder / "work"
        assert bed.provider().experiments() == ["nested"]
        assert bed.provider("g5k").state != bed.provider().state


class TestRelease:
    def test_hosts_go_before_machines_and_nothing_stays(self, bed: Bed) -> None:
        bed.reserve(experiment(VAGRANT, 2, 2))
        bed.log.clear()
        bed.provider().release("nested", bed.said.append)
        assert sorted(bed.log[:2]) == ["machine-1 down", "machine-2 down"]
        assert bed.log[2:] == ["release nested"]
        assert not (bed.folder / "state").exists()
        assert not (bed.folder / "run").exists()
        bed.provider().release("nested", bed.said.append)
        assert bed.log[3:] == ["release nested"]

    def test_a_virtual_machine_that_does_not_answer_goes_with_what_is_on_it(self, bed: Bed) -> None:
        bed.reserve(experiment(VAGRANT, 2, 2))
        bed.machines.away = {"machine-2"}
        bed.provider().release("nested", bed.said.append)
        assert bed.log[-1] == "release nested"
        assert any(line.startswith("machine-2 is given back") for line in bed.said)

    def test_a_given_machine_that_does_not_answer_is_not_forgotten(self, bed: Bed) -> None:
        bed.reserve(experiment(MANY, 2, 2), "static")
        bed.machines.away = {"big-2"}
        with pytest.raises(TestbedError, match="big-2: hosts of nested may still run there"):
            bed.provider("static").release("nested", bed.said.append)
        assert "release nested" not in bed.log
        bed.machines.away = set()
        bed.log.clear()
        bed.provider("static").release("nested", bed.said.append)
        assert bed.log == ["big-2 down", "release nested"]

    def test_a_reservation_that_was_cut_off_is_released(self, bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bed.machines, "bring", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            bed.reserve(experiment(VAGRANT, 1))
        assert bed.provider().experiments() == ["nested"]
        bed.provider().release("nested", bed.said.append)
        assert bed.log[-1] == "release nested"
        assert not (bed.folder / "state").exists()


def _interrupt(name: str) -> None:
    raise KeyboardInterrupt


class TestImage:
    @pytest.fixture
    def tree(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(machine_verbs, "IMAGES", tmp_path / "images")
        tree = tmp_path / "tree"
        (tree / "etc").mkdir(parents=True)
        (tree / "etc/one").write_text("one")
        (tree / "etc/one").chmod(0o4750)
        (tree / "link").symlink_to("etc/one")
        return tree

    def received(self, archive: Path, sha256: str) -> Any:
        with archive.open("rb") as rest:
            return machine_verbs.image({"name": "x-1", "sha256": sha256}, Conversation(rest.fileno()))

    def test_it_arrives_as_it_is_and_once(self, tree: Path) -> None:
        with packed_tree(tree) as (archive, sha256):
            assert self.received(archive, sha256) is True
            assert self.received(archive, sha256) is False
        assert not archive.exists()
        there = machine_verbs.IMAGES / "x-1"
        assert (there / "etc/one").stat().st_mode & 0o7777 == 0o4750
        assert (there / "link").readlink() == Path("etc/one")
        assert [entry.name for entry in machine_verbs.IMAGES.iterdir()] == ["x-1"]

    @pytest.mark.parametrize("change", [lambda text: text[:-40], lambda text: text + b"more", lambda _: b"none"])
    def test_what_does_not_arrive_whole_is_not_there(self, tree: Path, change: Callable[[bytes], bytes]) -> None:
        with packed_tree(tree) as (archive, sha256):
            archive.write_bytes(change(archive.read_bytes()))
            with pytest.raises(MachineError, match=r"cannot be unpacked|did not arrive whole"):
                self.received(archive, sha256)
        assert list(machine_verbs.IMAGES.iterdir()) == []

    def test_another_bake_has_another_name(self, tree: Path) -> None:
        name = tree_name(tree)
        assert tree_name(tree) == name
        (tree / "etc/one").write_text("two!")
        assert tree_name(tree) != name
        assert name.startswith("tree-")
