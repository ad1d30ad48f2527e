"""What libvirt and VirtualBox tell, with programs in the place of virsh and VBoxManage."""

from __future__ import annotations

from pathlib import Path

import pytest

from discovery_deploy.system.errors import TestbedError
from discovery_deploy.testbeds import hypervisor

VIRSH = """\
#!/bin/sh
shift 3   # --quiet --connect URI
echo "$*" >> "$0.calls"
[ -e "$0.gone" ] && gone=yes
case "$*" in
  "list --all --name") [ "$gone" ] || printf '%s\\n' dd_paper_a dd_paper_b dd_paper-2_a other ''; exit 0 ;;
  "list --state-running --name") [ "$gone" ] || printf '%s\\n' dd_paper_a other '' ;;
  "net-list --all --name") [ "$gone" ] || printf '%s\\n' default dd_paper_0 '' ;;
  "net-list --name") printf '%s\\n' dd_paper_0 '' ;;
  "net-dumpxml default") echo "<network><name>default</name></network>" ;;
  "net-dumpxml dd_paper_0") echo "<network><ip family='ipv6' address='fd00::1' prefix='64'/>"
                            echo "<ip address='10.192.0.1' netmask='255.255.255.0'/></network>" ;;
  "pool-list --name") echo default ;;
  "vol-list --pool default") [ "$gone" ] || printf ' dd_paper_a.img   /x/dd_paper_a.img\\n box.img   /x/box.img\\n' ;;
esac
"""


def fake(directory: Path, name: str, text: str) -> Path:
    program = directory / name
    program.write_text(text)
    program.chmod(0o755)
    return program


@pytest.fixture
def virsh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return fake(tmp_path, "virsh", VIRSH)


def calls(virsh: Path) -> list[str]:
    return Path(f"{virsh}.calls").read_text().splitlines()


def test_networks_are_told_also_where_no_machine_runs(virsh: Path) -> None:
    assert hypervisor.Libvirt().networks() == {"dd_paper_0": "10.192.0.1/255.255.255.0"}


def test_what_bears_an_experiments_name_is_found_and_nothing_else(virsh: Path) -> None:
    assert hypervisor.Libvirt().left("dd_paper_") == ["dd_paper_a", "dd_paper_b", "dd_paper_0", "dd_paper_a.img"]
    assert hypervisor.Libvirt().left("dd_nothing_") == []


def test_what_is_removed_is_stopped_before_and_others_are_left_alone(virsh: Path) -> None:
    hypervisor.Libvirt().remove("dd_paper_")
    acts = [call for call in calls(virsh) if call.split()[0] in ("destroy", "undefine", "vol-delete", "net-destroy")]
    undefined = "--managed-save --snapshots-metadata --nvram"
    assert acts == [
        "destroy dd_paper_a",
        f"undefine dd_paper_a {undefined}",
        f"undefine dd_paper_b {undefined}",
        "vol-delete --pool default dd_paper_a.img",
        "net-destroy dd_paper_0",
    ]


def test_a_libvirt_that_does_not_answer_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, "virsh", "#!/bin/sh\necho 'error: failed to connect to the hypervisor' >&2\nexit 1\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", "qemu:///session")
    with pytest.raises(TestbedError, match="qemu:///session list --all --name` failed:\n    error: failed to connect"):
        hypervisor.Libvirt().machines()


def test_a_missing_command_is_told_with_the_package_that_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for asked, package in ((hypervisor.Libvirt(), "libvirt-clients"), (hypervisor.VirtualBox(), "virtualbox")):
        with pytest.raises(TestbedError, match="is missing") as raised:
            asked.machines()
        assert raised.value.advice == f"apt-get install -y {package}"


def test_machines_of_virtualbox_are_known_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = '"dd_paper_a" {0b3e4e4c-0000-4000-8000-000000000001}\n"a b" {0b3e4e4c-0000-4000-8000-000000000002}\n'
    program = fake(tmp_path, "VBoxManage", f'#!/bin/sh\necho "$*" >> "$0.calls"\ncat <<\'X\'\n{listed}X\n')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert hypervisor.VirtualBox().machines() == ["dd_paper_a", "a b"]
    hypervisor.VirtualBox().remove("dd_paper_")
    assert calls(program)[-2:] == ["controlvm dd_paper_a poweroff", "unregistervm dd_paper_a --delete"]
