"""Environments from lock files: what they hold, what their name depends on, how a build sees this machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from discovery_deploy.software import stack
from discovery_deploy.system.data import data_directory
from discovery_deploy.system.errors import TestbedError

LOCKS = ("openstack-2025.1", "rally")


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_of_a_lock_has_hashes_and_comes_from_no_named_index(name: str) -> None:
    text = stack.lock_text(name)
    entries = re.split(r"\n(?=[a-z0-9])", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    assert len(entries) > 50
    assert [entry.splitlines()[0] for entry in entries if "--hash=sha256:" not in entry] == []
    assert "://" not in text


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_answers_what_its_input_asks(name: str) -> None:
    asked = (data_directory("locks") / f"{name}.in").read_text()
    versions = stack.lock_versions(stack.lock_text(name))
    for package, version in re.findall(r"^([\w-]+)(?:==(\S+))?$", asked, re.MULTILINE):
        assert package in versions
        assert version in ("", versions[package])


def test_versions_are_read_with_and_without_markers() -> None:
    text = (
        "# a==1\nalembic==1.15.2 \\\n    --hash=sha256:00\nasync-timeout==5.0.1 ; python_full_version < '3.11.3' \\\n"
    )
    assert stack.lock_versions(text) == {"alembic": "1.15.2", "async-timeout": "5.0.1"}


def test_a_lock_says_itself_what_is_built_from_source() -> None:
    text = (
        "# made by\n#    uv pip compile --only-binary :all: --no-binary ovs x.in\n"
        "a==1 \\\n    --hash=sha256:00\n    # via\n    #   ovs\n"
        "ovs==3.5.0 \\\n    --hash=sha256:11\nz==2 \\\n    --hash=sha256:22\n"
    )
    assert stack.split_lock(text) == (
        "a==1 \\\n    --hash=sha256:00\nz==2 \\\n    --hash=sha256:22\n",
        "ovs==3.5.0 \\\n    --hash=sha256:11\n",
    )


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_of_a_lock_is_installed_once(name: str) -> None:
    text = stack.lock_text(name)
    wheels, sources = (stack.lock_versions(part) for part in stack.split_lock(text))
    assert not set(wheels) & set(sources)
    assert wheels | sources == stack.lock_versions(text)
    assert len(sources) < 6
    assert not sources or "setuptools" in wheels


def test_a_release_without_a_lock_is_refused_by_name() -> None:
    with pytest.raises(TestbedError, match=r"openstack-1999\.1\.txt"):
        stack.lock_text("openstack-1999.1")


def test_names_depend_on_image_and_lock() -> None:
    first = stack.environment_hash("openstack", "image-a", "2025.1")
    assert first == stack.environment_hash("openstack", "image-a", "2025.1")
    others = {stack.environment_hash("openstack", "image-b", "2025.1"), stack.environment_hash("rally", "image-a")}
    assert len(others | {first}) == 3
    assert stack.database_hash("image-a", "x", "all") != stack.database_hash("image-a", "y", "all")
    assert stack.database_hash("image-a", "x", "all") != stack.database_hash("image-a", "x", "keystone")


def test_an_environment_has_the_same_path_everywhere() -> None:
    environment = stack.Environment(name="rally-0123", hash="0123", versions={})
    assert environment.path == "/opt/discovery-deploy/rally-0123"


def test_the_index_of_this_machine_is_used_in_builds() -> None:
    machine = {
        "UV_INDEX_URL": "https://a/simple",
        "https_proxy": "http://p:1",
        "HTTP_PROXY": "http://p:2",
        "HOME": "/x",
    }
    assert stack.index_variables({"UV_HTTP_RETRIES": "1"}) == {"UV_HTTP_RETRIES": "1"}, "a person's own number counts"
    assert stack.index_variables({**machine, "UV_CACHE_DIR": "/c", "UV_PYTHON": "3.12"}) == {
        "UV_INDEX_URL": "https://a/simple",
        "https_proxy": "http://p:1",
        "HTTP_PROXY": "http://p:2",
    }


def test_pips_index_counts_where_uv_has_none_and_local_directories_do_not() -> None:
    pip = {"PIP_INDEX_URL": "https://b/simple", "PIP_EXTRA_INDEX_URL": "file:///opt/simple"}
    assert stack.index_variables(pip) == {"UV_DEFAULT_INDEX": "https://b/simple"}
    assert stack.index_variables({**pip, "UV_INDEX_URL": "https://a"}) == {"UV_INDEX_URL": "https://a"}


def test_a_build_sees_the_image_the_binds_and_the_certificates(tmp_path: Path) -> None:
    (tmp_path / "downloads").mkdir()
    (tmp_path / "uv").write_text("")
    binds = {tmp_path / "downloads": Path("/run/downloads"), tmp_path / "uv": Path("/usr/local/bin/uv")}
    text = stack.sandbox_script(Path("/c/images/0123"), ".w", binds, Path("/m/ca.crt"), "echo it's")
    assert text == (
        "set -e\n"
        "cd /c/images\n"
        "mount -t tmpfs -o mode=755 tmpfs .w\n"
        "mkdir .w/upper .w/work .w/root\n"
        "mount -t overlay -o lowerdir=0123,upperdir=.w/upper,workdir=.w/work overlay .w/root\n"
        "mount --rbind /dev .w/root/dev\n"
        "mount -t proc proc .w/root/proc\n"
        "cp -L /etc/resolv.conf /etc/hosts .w/root/etc/\n"
        "cp -L /m/ca.crt .w/root/run/certificates.crt\n"
        f"mkdir -p .w/root/run/downloads\n"
        f"mount --bind {tmp_path}/downloads .w/root/run/downloads\n"
        f"touch .w/root/usr/local/bin/uv\n"
        f"mount --bind {tmp_path}/uv .w/root/usr/local/bin/uv\n"
        "exec chroot .w/root /bin/bash -euo pipefail -c 'echo it'\"'\"'s'\n"
    )


def test_the_cache_is_where_the_variable_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISCOVERY_DEPLOY_CACHE", raising=False)
    assert stack.cache_directory() == Path("/var/cache/discovery-deploy")
    monkeypatch.setenv("DISCOVERY_DEPLOY_CACHE", "/elsewhere")
    assert stack.cache_directory() == Path("/elsewhere")
