"""Software brought to given hosts: plain Debians without a way to any archive, which see nothing of the cache."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from discovery_deploy.experiment.lease import Lease
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.software import builds, packages, shipping, stack
from discovery_deploy.software.apt_archive import FOLDER, archive_name
from discovery_deploy.software.records import HostSoftware
from discovery_deploy.system.errors import TestbedError
from discovery_deploy.system.remote import Remote, ssh_config_text
from discovery_deploy.testbeds import local
from tests.integration.local_bed import LocalBed
from tests.integration.plain_tree import plain_tree
from tests.leased import known_hosts

pytestmark = pytest.mark.integration

ROLES = {"paris": ["control", "database"], "lyon": ["database"]}
SITES = [{"name": site, "hosts": [{"name": f"{site}-1", "roles": roles}]} for site, roles in ROLES.items()]
DEPLOYMENT = {"topology": {"type": "centralized", "site": "paris"}, "backend": {"type": "mariadb", "site": "lyon"}}
EXPERIMENT = Experiment.model_validate({"name": "plain", "sites": SITES, "deployment": DEPLOYMENT})
EVERY_FILE = "find / -xdev -path /proc -prune -o -path /tmp -prune -o -path /run -prune -o -print | sort"
KEPT = ("/var/log/journal", "/var/cache/", "/var/log/apt", "/var/lib/apt/", "/var/lib/dpkg/", "/var/log/")
"""Where programs of the host write down what happened, and what they may forget."""


class Counted(Remote):
    """Remembers what was sent."""

    sent: list[tuple[str, str]]

    def send(self, host: str, command: Sequence[str], file: Path, timeout_s: float = 1800.0) -> str:
        self.sent.append((host, command[-1]))
        return super().send(host, command, file, timeout_s)


class Bed:
    """Two plain hosts, and what is to be on them."""

    def __init__(self, bed: LocalBed, folder: Path) -> None:
        self.bed = bed
        self.lease: Lease = bed.reserve(EXPERIMENT)
        no_options: dict[str, str] = {}
        ways = {host.name: (host.management_address, no_options) for host in self.lease.hosts}
        # pytest's folders are too long for ssh's sockets
        known = folder / "known"
        text = ssh_config_text(ways, bed.key, folder, known, all_known=known_hosts(self.lease, known))
        text = text.replace("ControlMaster auto", "ControlMaster no")
        (folder / "ssh_config").write_text(text)
        self.remote = Counted(folder / "ssh_config")
        self.cache = stack.cache_directory()
        self.environments = builds.environments(self.cache, "2025.1", ["keystone"], print)
        self.said: list[str] = []
        self.before = self.look()

    def look(self) -> dict[str, tuple[set[str], str]]:
        """Host -> its files, and its packages and accounts."""
        return {host.name: (self.files(host.name), self.packages(host.name)) for host in self.lease.hosts}

    def files(self, host: str) -> set[str]:
        return {line for line in self.run(host, EVERY_FILE).splitlines() if not line.startswith(KEPT)}

    def packages(self, host: str) -> str:
        return self.run(host, "dpkg-query --show; cut -d: -f1 /etc/passwd /etc/group")

    def run(self, host: str, command: str) -> str:
        return self.remote(host, ["sh", "-c", command]).strip()

    def ship(self) -> dict[str, HostSoftware]:
        self.remote.sent = []
        shipped = shipping.ship(self.remote, self.lease, EXPERIMENT, self.environments, self.cache, self.said.append)
        return {one.host: one for one in shipped}


@pytest.fixture(scope="module")
def plain(key: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    bed = LocalBed(plain_tree(stack.cache_directory()), key, tmp_path_factory.mktemp("plain"))
    folder = Path(str(tmp_path_factory.mktemp("ssh")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "ENVIRONMENTS", "/mnt")  # empty there: the hosts see nothing of the cache
        try:
            found = Bed(bed, folder)
            yield found
            found.remote.close(host.name for host in found.lease.hosts)
        finally:
            bed.release_all()


def test_hosts_have_what_they_need_and_nothing_of_it_runs(plain: Bed) -> None:
    assert "Temporary failure" in plain.run("paris-1", "apt-get update 2>&1")
    shipped = plain.ship()
    keystone, database = plain.environments.service("keystone"), plain.environments.database
    assert set(shipped["paris-1"].environments) == {keystone.name, database.name}
    assert set(shipped["lyon-1"].environments) == {database.name}
    assert plain.run("paris-1", f"{keystone.path}/bin/keystone-manage --version") == keystone.versions["keystone"]
    assert plain.run("lyon-1", f"stat -c '%u %a' {database.path}/datadir/ibdata1") == "0 640"
    for host, one in shipped.items():
        assert {"mariadb-server", "memcached", "galera-4"} <= set(one.installed)
        assert not {"python3", "openssh-server", "systemd"} & set(one.installed)
        assert one.packages_from.startswith(archive_name("base"))
        assert plain.run(host, "mariadbd --version; ls -A /var/lib/mysql").startswith("mariadbd ")
        units = "mariadb memcached rsync"
        assert set(plain.run(host, f"systemctl is-active {units} || :").split()) == {"inactive"}
        assert set(plain.run(host, f"systemctl is-enabled {units} || :").split()) == {"disabled"}
        assert plain.run(host, "systemctl is-system-running") == "running"
        assert plain.run(host, "ls /usr/sbin/policy-rc.d 2>&1 || :").endswith("No such file or directory")
        assert plain.run(host, "ls -A /var/lib/mysql") == ""


def test_what_is_there_is_not_sent_again(plain: Bed) -> None:
    first = plain.ship()
    assert plain.ship() == first
    assert plain.remote.sent == []


def test_a_damaged_file_is_noticed_and_mended_by_that_file_alone(plain: Bed) -> None:
    plain.ship()
    keystone = plain.environments.service("keystone").path
    file = f"{keystone}/lib/python3.11/site-packages/keystone/version.py"
    sound = plain.run("paris-1", f"sha256sum {file}")
    plain.run("paris-1", f"echo '# changed' >> {file}; touch {keystone}/added; rm {keystone}/lib64")
    plain.said.clear()
    plain.ship()
    assert plain.remote.sent == [("paris-1", Path(keystone).name)]
    assert next(line for line in plain.said if "sending" in line).endswith("1 files, 0 MB packed")
    assert plain.run("paris-1", f"sha256sum {file}") == sound
    assert plain.run("paris-1", f"ls {keystone}/added 2>&1 || readlink {keystone}/lib64").endswith("lib")


def test_environments_of_another_setting_go_unless_they_run(plain: Bed) -> None:
    plain.ship()
    old = "/opt/discovery-deploy/openstack-0"
    plain.run("lyon-1", f"mkdir {old}; cp /bin/sleep {old}/; setsid {old}/sleep 600 > /dev/null 2>&1 & :")
    plain.ship()
    assert plain.run("lyon-1", f"ls {old}") == "sleep"
    plain.run("lyon-1", "pkill -x sleep")
    plain.ship()
    assert plain.run("lyon-1", f"ls {old} 2>&1 || :").endswith("No such file or directory")


@contextmanager
def archive_served(address: str, folder: Path) -> Iterator[str]:
    """The folder as an archive on the network."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer((address, 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{address}:{server.server_port}"
        server.shutdown()


def test_hosts_are_left_as_they_were_and_may_use_their_own_archive(plain: Bed) -> None:
    plain.ship()
    removed = shipping.unship(plain.remote, list(plain.before), remove_installed=True)
    assert all("mariadb-server" in names for names in removed.values())
    for host, (files, installed) in plain.look().items():
        assert files == plain.before[host][0]
        assert installed == plain.before[host][1]

    folder = plain.cache / FOLDER / archive_name("base")
    with archive_served(plain.bed.plan(plain.lease).management.address, folder) as url:
        plain.run("lyon-1", "mv /etc/apt/sources.list /root/")
        with pytest.raises(TestbedError, match=r"(?s)lyon-1: Debian packages: .*Unable to locate.*carried"):
            install(plain, "network")
        plain.run("lyon-1", f"echo 'deb [trusted=yes] {url} ./' > /etc/apt/sources.list")
        found = install(plain, "network")
        assert (found["source"], found["missing"]) == ("network", [])
        assert plain.run("lyon-1", "systemctl is-active mariadb memcached || :").split() == ["inactive", "inactive"]
        plain.run("lyon-1", "mv /root/sources.list /etc/apt/")
    assert shipping.unship(plain.remote, ["lyon-1"], remove_installed=False) == {"lyon-1": []}
    assert "mariadb-server" in plain.packages("lyon-1")
    assert plain.run("lyon-1", "ls -d /var/lib/discovery-deploy /opt/discovery-deploy 2>/dev/null || :") == ""


def install(plain: Bed, way: packages.Packages) -> dict[str, object]:
    """The packages of lyon-1, for which nothing is sent."""
    return packages.install_packages(
        plain.remote, "lyon-1", "base", way, plain.cache, lambda *_: pytest.fail("something is sent"), print
    )
