"""Provider `static` on real hosts: who may have them, how they are reached, and that they are left as they were."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from discovery_deploy.agent import given_host
from discovery_deploy.experiment.lease import Lease
from discovery_deploy.software.traces import traces
from discovery_deploy.system.data import data_directory
from discovery_deploy.system.errors import TestbedError
from discovery_deploy.testbeds.static import StaticProvider
from tests.providers_bed import OnStatic, bed_of

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnStatic]:
    with bed_of("static", tmp_path_factory.mktemp("static")) as made:
        assert isinstance(made, OnStatic)
        yield made


@pytest.fixture
def free(bed: OnStatic) -> Iterator[OnStatic]:
    bed.release()
    bed.said.clear()
    yield bed
    bed.release()
    assert bed.left() == []


def on(bed: OnStatic, host: str, command: str) -> str:
    """A command of the machine's owner."""
    return bed.owner.ssh(bed.machines, host, command)


EXPERIMENT = r"""
set -e
for user in USERS; do useradd --system --user-group --no-create-home --home-dir /var/lib/$user $user; done
for path in PATHS; do test ! -d "$(dirname "$path")" || test -e "$path" || echo ours > "$path"; done
mkdir -p /run/ovn /run/openvswitch
for folder in CONTENTS; do test ! -d "$folder" || { echo ours > "$folder/ours"; mkdir "$folder/more"; }; done
rm -rf /etc/keystone /opt/discovery-deploy
mkdir -p /etc/keystone/token-keys /opt/discovery-deploy/one/bin /root/.ansible/tmp
rm -f /etc/systemd/system/keystone.service /etc/systemd/system/site-mariadb.service
unit() { printf '[Service]\nUser=%s\nRestart=always\nExecStart=%s\n' "$2" "$3" > "/etc/systemd/system/$1"; }
unit keystone.service keystone '/bin/sleep 1000'
unit nova-compute@.service root '/bin/sleep 1000'
unit site-mariadb.service root '/bin/false'
systemctl daemon-reload
systemctl start keystone.service nova-compute@a.service nova-compute@b.service
systemctl start --no-block site-mariadb.service
cp /bin/sleep /opt/discovery-deploy/one/bin/rally
setsid /opt/discovery-deploy/one/bin/rally 1000 > /dev/null 2>&1 < /dev/null &
setsid setpriv --reuid keystone --clear-groups sleep 1001 > /dev/null 2>&1 < /dev/null &
ip link add br-int type bridge
tc qdisc replace dev eth0 root handle 1: pfifo limit 10
"""


def experiment_on(bed: OnStatic, lease: Lease, host: str) -> None:
    """What an experiment leaves: something at every place that the roles know of."""
    known = traces(data_directory("playbooks"))
    text = EXPERIMENT.replace("USERS", " ".join(known.users))
    text = text.replace("PATHS", " ".join(f"'{path.replace('*', 'x')}'" for path in known.paths))
    text = text.replace("CONTENTS", " ".join(known.contents))
    bed.login(lease, host, text)


def test_after_an_experiment_a_host_is_as_it_was_found(free: OnStatic) -> None:
    experiment_on(free, free.reserve(), "paris-1")
    assert len(free.left()) > 80
    free.release()
    assert free.left() == []
    assert on(free, "paris-1", "pgrep -f 'slee[p] 100|rall[y] 1000' || echo none") == "none"


PRECIOUS = r"""
mkdir -m 750 /etc/keystone && echo mine > /etc/keystone/keystone.conf
useradd --system --user-group --no-create-home glance
echo table > /var/lib/mysql/table && chown -R mysql:mysql /var/lib/mysql
ln -s /nowhere /etc/site-mariadb.cnf
mkdir /root/.ansible
systemctl --quiet enable memcached.service
printf '%s' '# no newline at the end' > /root/.ssh/more && cat /root/.ssh/more >> /root/.ssh/authorized_keys
"""
NOT_PRECIOUS = r"""
systemctl --quiet disable memcached.service
rm -rf /etc/keystone /var/lib/mysql/table /etc/site-mariadb.cnf /root/.ansible /root/.ssh/more
userdel glance
sed -i 's/^# no newline.*//; /^$/d' /root/.ssh/authorized_keys
"""


def test_what_a_host_had_of_its_own_is_kept_and_comes_back(free: OnStatic) -> None:
    before = free.found
    on(free, "lyon-1", PRECIOUS)
    free.found = {host: free.picture(host) for host in before}
    try:
        lease = free.reserve()
        assert free.login(lease, "lyon-1", "ls -A /var/lib/mysql; test ! -e /etc/keystone") == ""
        free.login(lease, "lyon-1", "rm -f /root/.ansible/x; systemctl --quiet disable memcached.service")
        free.login(lease, "lyon-1", "mkdir /etc/keystone; touch /etc/keystone/ours /etc/site-mariadb.cnf")
        free.reserve()
        free.release()
        assert free.left() == []
    finally:
        free.release()
        free.found = before
        on(free, "lyon-1", NOT_PRECIOUS)


def test_a_service_at_work_that_experiments_bring_themselves_is_not_touched(free: OnStatic) -> None:
    on(free, "lyon-1", "systemctl start memcached.service")
    try:
        with pytest.raises(TestbedError, match=r"lyon-1: memcached.service is at work.*disable --now memcached"):
            free.reserve()
        assert on(free, "lyon-1", "systemctl is-active memcached.service") == "active"
        assert on(free, "paris-1", f"ls -d {given_host.HOME} 2>/dev/null || echo free") == "free"  # none is touched
        assert free.provider().experiments() == []
    finally:
        on(free, "lyon-1", "systemctl stop memcached.service")


def other(bed: OnStatic, folder: Path) -> tuple[StaticProvider, Any, str, Path]:
    """Another experiment that wants one of the machines."""
    asked = bed.experiment().model_dump(mode="json", by_alias=True)
    del asked["sites"][1]
    asked |= {"name": "other", "provider": {"type": "static", "machines": [bed.machine("paris-1")]}}
    workspace = folder / "workspace"
    workspace.mkdir(parents=True)
    (workspace / "name").write_text("other\n")
    asked["deployment"]["backend"] = {"type": "mariadb", "site": "paris"}
    return (
        StaticProvider(state=folder / "state"),
        type(bed.experiment()).model_validate(asked),
        bed.public_key,
        workspace,
    )


TIMER = "apt-daily.timer"
LIKE_A_MACHINE = f"rm /etc/systemd/system/{TIMER}; systemctl daemon-reload; systemctl start {TIMER}"
LIKE_A_CONTAINER = f"systemctl stop {TIMER}; systemctl --quiet mask {TIMER}"


def test_what_a_host_does_by_itself_at_some_hour_waits_for_the_release(free: OnStatic) -> None:
    on(free, "lyon-1", LIKE_A_MACHINE)
    try:
        state = f"systemctl show --property=ActiveState --value {TIMER}"
        for _ in range(2):
            lease = free.reserve()
            assert free.login(lease, "lyon-1", state) == "inactive"
            on(free, "lyon-1", f"systemctl start {TIMER}")  # as a boot does it
        free.reserve()
        assert free.login(lease, "lyon-1", state) == "inactive"
        free.release()
        assert on(free, "lyon-1", state) == "active"
    finally:
        free.release()
        on(free, "lyon-1", LIKE_A_CONTAINER)


def test_a_host_that_another_experiment_holds_is_refused_naming_it(free: OnStatic, tmp_path: Path) -> None:
    free.reserve()
    provider, asked, key, workspace = other(free, tmp_path)
    with pytest.raises(TestbedError, match=r"paris-1: \S+ is held by experiment pair \(workspace \S+/workspace on "):
        provider.reserve(asked, key, free.image, print, workspace)
    assert provider.experiments() == []
    free.release()
    provider.reserve(asked, key, free.image, print, workspace)
    with pytest.raises(TestbedError, match="held by experiment other"):
        free.reserve()
    provider.release("other", print)


def test_a_release_leaves_hosts_alone_that_another_experiment_has_by_now(free: OnStatic, tmp_path: Path) -> None:
    free.reserve()
    record = free.folder / "state/static/pair/record.json"
    kept = record.read_text()
    free.release()
    provider, asked, key, workspace = other(free, tmp_path)
    lease = provider.reserve(asked, key, free.image, print, workspace)
    record.parent.mkdir(parents=True)
    record.write_text(kept)  # as if our release had been cut off after the hosts were free
    free.release()
    assert "paris-1: is held by experiment other" in "\n".join(free.said)
    assert provider.dead_hosts(lease) == []
    provider.release("other", print)


def test_a_record_that_is_lost_is_written_anew_from_the_same_workspace(free: OnStatic) -> None:
    lease = free.reserve()
    for path in (free.folder / "state/static/pair").iterdir():
        path.unlink()
    assert free.provider().experiments() == []
    assert free.reserve().identities == lease.identities


def test_hosts_of_a_workspace_that_is_no_more_are_taken(free: OnStatic) -> None:
    lease = free.reserve()
    gone, free.workspace = free.workspace, free.folder / "moved"
    shutil.copytree(gone, free.workspace)
    (gone / "name").unlink()
    try:
        for path in (free.folder / "state/static/pair").iterdir():
            path.unlink()
        assert free.reserve().identities == lease.identities
        assert json.loads(free.login(lease, "paris-1", f"cat {given_host.HOME}/held.json"))["workspace"] == str(
            free.workspace
        )
    finally:
        free.release()
        shutil.copy(free.workspace / "name", gone)
        free.workspace = gone


def test_a_machine_that_is_no_longer_of_the_experiment_is_given_back(free: OnStatic) -> None:
    free.reserve()
    changed = free.section()
    first, second = changed["machines"]
    first["address"], second["address"] = second["address"], first["address"]
    first["site_address"], second["site_address"] = second["site_address"], first["site_address"]
    swapped = free.reserve(changed)
    assert free.provider().dead_hosts(swapped) == []
    alone = free.experiment().model_dump(mode="json", by_alias=True)
    del alone["sites"][1]
    alone["provider"]["machines"] = [free.machine("paris-1")]
    asked = type(free.experiment()).model_validate(alone)
    free.provider().reserve(asked, free.public_key, free.image, free.said.append, free.workspace)
    assert on(free, "lyon-1", f"ls -d {given_host.HOME} 2>/dev/null || echo free") == "free"
    assert "given back" in "\n".join(free.said)


USER = (
    "useradd --create-home --home-dir /srv/me --shell /bin/bash me && "
    "usermod --password '*' me && cp -r /root/.ssh /srv/me/ && chown -R me:me /srv/me"
)


def test_root_who_may_not_log_in_is_said_before_anything_is_done(free: OnStatic) -> None:
    setting = "/etc/ssh/sshd_config.d/no-root.conf"
    on(free, "paris-1", f"{USER}; {SUDO}; echo 'PermitRootLogin no' > {setting}; systemctl reload ssh")
    options = {"user": "me", "become": True}
    section = {"type": "static", "machines": [free.machine("paris-1", **options), free.machine("lyon-1")]}
    try:
        with pytest.raises(TestbedError, match=r"paris-1: root may not log in: PermitRootLogin is no") as caught:
            free.reserve(section)
        assert "PermitRootLogin prohibit-password" in caught.value.advice
    finally:
        as_me(free, f"sudo -n sh -c 'rm {setting}; systemctl reload ssh; {NO_SUDO}'")


def as_me(bed: OnStatic, command: str) -> str:
    """A command of a user who is not root."""
    options = [word.replace("root@", "me@") for word in bed.owner.ssh_options(bed.machines, "paris-1")]
    return subprocess.run(["ssh", *options, command], capture_output=True, text=True, check=True).stdout


SUDO = (
    "cp /bin/bash /usr/local/bin/asroot && chmod u+s /usr/local/bin/asroot && "
    r"printf '#!/usr/local/bin/asroot -p\nshift\nexec setpriv --reuid 0 --regid 0 --clear-groups \"$@\"\n' "
    "> /usr/local/bin/sudo && chmod 755 /usr/local/bin/sudo"
).replace('\\"', '"')
NO_SUDO = "rm -f /usr/local/bin/sudo /usr/local/bin/asroot; /usr/sbin/userdel --remove --force me 2>/dev/null; true"


def test_a_user_who_becomes_root_holds_a_host_for_root(free: OnStatic) -> None:
    on(free, "paris-1", f"{USER}; {SUDO}")
    sections = [
        {"type": "static", "machines": [free.machine("paris-1", user="me", become=become), free.machine("lyon-1")]}
        for become in (False, True)
    ]
    try:
        with pytest.raises(TestbedError, match="paris-1: me is not root"):
            free.reserve(sections[0])
        lease = free.reserve(sections[1])
        assert free.login(lease, "paris-1", "id -un") == "root"
        free.release()
    finally:
        free.release()
        on(free, "paris-1", NO_SUDO)


def test_a_host_is_reached_through_another_one(free: OnStatic) -> None:
    gate = free.machine("paris-1")
    section = free.section()
    section["machines"][1] |= {"jump": f"root@{gate['address']}:22", "address": free.machine("lyon-1")["site_address"]}
    lease = free.reserve(section)
    assert re.search(r"^ssh .*-W", lease.hosts[1].ssh["ProxyCommand"])
    # the experiment's key opens the host behind, the machine's own key the one between
    assert free.login(lease, "lyon-1", "hostname") == "lyon-1"
    assert free.provider().dead_hosts(lease) == []
