"""What hosts run, built once and cached: Python environments from lock files, and databases with a schema in them.

Everything is built inside the base image, by the hosts' own Python and programs, under the very path where hosts see
it (`/opt/discovery-deploy/<name>-<hash>`, read-only there), and named by the hash of all that went into it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from discovery_deploy.software.image import base_image, image_hash
from discovery_deploy.software.seed import Content, seed_script
from discovery_deploy.system.data import data_directory
from discovery_deploy.system.errors import TestbedError
from discovery_deploy.system.files import digest, made_once, private_folder
from discovery_deploy.system.programs import contained, run_logged
from discovery_deploy.system.progress import Progress
from discovery_deploy.system.strict import Strict

__all__ = [
    "Environment",
    "base_image",
    "build_inside",
    "cache_directory",
    "database_hash",
    "database_seed",
    "environment_hash",
    "image_hash",
    "openstack_environment",
    "rally_environment",
]

HOST_DIRECTORY = Path("/opt/discovery-deploy")
"""Where hosts see `environments/` of the cache."""
HOST_PYTHON = "/usr/bin/python3"
CERTIFICATES = "/run/certificates.crt"
RECIPE = 1
"""Raise it when a build script below changes what it makes."""

INDEX_VARIABLES = re.compile(
    r"^(UV_(DEFAULT_INDEX|INDEX|INDEX_URL|EXTRA_INDEX_URL|INDEX_STRATEGY|INDEX_\w+_(USERNAME|PASSWORD)|INSECURE_HOST"
    r"|SYSTEM_CERTS|NATIVE_TLS|HTTP_TIMEOUT|HTTP_RETRIES|OFFLINE)|(https?|all|no)_proxy)$",
    re.IGNORECASE,
)
"""Environment variables that say how this machine reaches its package index; builds get them, hosts do not."""

# The few packages that there are as source only are built by the setuptools of the lock, and nothing that is not in it.
BUILD_ENVIRONMENT = """\
uv venv --quiet --allow-existing --no-python-downloads --python @python@ "$PREFIX"
install() {
    uv pip install --require-hashes --no-deps --link-mode copy --compile-bytecode --python "$PREFIX/bin/python" "$@"
}
install --no-build --requirement "$PREFIX/wheels.txt"
if [ -s "$PREFIX/sources.txt" ]; then install --no-build-isolation --requirement "$PREFIX/sources.txt"; fi
find "$PREFIX" -name '*.pyc' -print -quit | grep -q .
"""

# Rally's own tools make its database, with marks in place of what differs from site to site.
BUILD_RALLY = """\
mkdir -p "$PREFIX/share/discovery-deploy"
printf '[database]\nconnection = sqlite:///%s/share/discovery-deploy/rally.db\n' "$PREFIX" > /run/rally.conf
cat > /run/spec.json <<END
{"existing@openstack": {
  "auth_url": "@auth_url@", "region_name": "@region_name@", "endpoint_type": "public", "https_insecure": false,
  "admin": {"username": "admin", "password": "@password@", "project_name": "admin",
            "user_domain_name": "Default", "project_domain_name": "Default"},
  "users": [{"username": "@user@", "password": "@user_password@", "project_name": "@user@",
             "user_domain_name": "Default", "project_domain_name": "Default"}]}}
END
echo "I: making Rally's database"
"$PREFIX/bin/rally" --config-file /run/rally.conf db create
"$PREFIX/bin/rally" --config-file /run/rally.conf env create --name site --spec /run/spec.json --no-use
"""
BUILDS = {"openstack": BUILD_ENVIRONMENT, "rally": BUILD_ENVIRONMENT + BUILD_RALLY}


class Environment(Strict):
    """Something built once and seen by hosts, read-only."""

    name: str
    """`<kind>-<hash>`, its directory's name here and on hosts."""
    hash: str
    versions: dict[str, str]
    """Package -> version of what is in it."""

    @property
    def path(self) -> str:
        """Its directory on hosts."""
        return str(HOST_DIRECTORY / self.name)


def cache_directory() -> Path:
    """Where content-addressed things are kept, shared by all experiments of this machine."""
    return Path(os.environ.get("DISCOVERY_DEPLOY_CACHE") or "/var/cache/discovery-deploy").absolute()


def openstack_environment(cache: Path, image: Path, release: str, progress: Progress) -> Environment:
    """The Python environment with an OpenStack release, built from `locks/openstack-<release>.txt` if not cached.

    Args:
        cache: directory of the cache.
        image: base tree of the hosts; its Python makes the environment.
        release: OpenStack release, e.g. "2025.1".
        progress: takes one short line per step.
    Raises:
        TestbedError: a package could not be had, or the build failed; the end of its output is quoted.
    """
    return _python_environment(cache, image, "openstack", lock_text(f"openstack-{release}"), progress)


def rally_environment(cache: Path, image: Path, progress: Progress) -> Environment:
    """The Python environment with Rally, built from `locks/rally.txt` if not cached. As `openstack_environment`."""
    return _python_environment(cache, image, "rally", lock_text("rally"), progress)


def database_seed(
    cache: Path, image: Path, openstack: Environment, content: Content, progress: Progress, hash_: str = ""
) -> Environment:
    """MariaDB's data directory with the tables of an OpenStack environment, made by its own tools if not cached.

    It holds no secret, no address and no name of an experiment: deployment gives it users, a password and endpoints.
    Hosts copy `datadir/` from it, in which every copy is the same state, so that Galera needs no transfer of state.

    Args:
        cache: directory of the cache.
        image: base tree of the hosts.
        openstack: whose tools make the tables.
        content: which services' tables.
        progress: takes one short line per step.
        hash_: that it is known by; default: that of image, environment and content.
    Raises:
        TestbedError: the build failed; the end of its output is quoted.
    """
    cache, image = cache.absolute(), image.absolute()
    hash_ = hash_ or database_hash(image.name, openstack.hash, content)
    target = cache / "environments" / f"database-{hash_}"

    def build(partial: Path) -> None:
        progress("making the databases' first content")
        variables = {"OPENSTACK": openstack.path, "HOME": "/root"}
        binds = {cache / "environments" / openstack.name: HOST_DIRECTORY / openstack.name}
        build_inside(cache, image, partial, target.name, seed_script(content), variables, binds, progress)

    made_once(target, build, "the databases' first content", progress)
    version = (target / "version").read_text(encoding="utf-8").strip()
    return Environment(name=target.name, hash=hash_, versions={"mariadb": version})


def environment_hash(kind: str, image: str, release: str = "") -> str:
    """Hash of an environment, known without building it.

    Args:
        kind: `openstack` or `rally`.
        image: hash of the base image.
        release: OpenStack release; empty for Rally.
    """
    return digest(RECIPE, kind, image, BUILDS[kind], lock_text(f"{kind}-{release}" if release else kind))


def database_hash(image: str, openstack: str, content: Content) -> str:
    """Hash of the databases' first content, from the hashes of the base image and of the OpenStack environment."""
    return digest(RECIPE, "database", image, openstack, seed_script(content))


def lock_text(name: str) -> str:
    """Text of a lock file of this package. Raises TestbedError when there is none."""
    path = data_directory("locks") / f"{name}.txt"
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise TestbedError(f"there is no lock file {path}", "Ask for a release that has one.") from None


def split_lock(text: str) -> tuple[str, str]:
    """A lock's packages that are installed as wheels, and those that are built from source, as two locks. Pure.

    The latter are those which uv's command in the lock's head excepts from being wheels.
    """
    sources = set(re.findall(r"--no-binary (\S+)", re.match(r"(?:#.*\n)*", text)[0]))  # type: ignore[index]
    parts: tuple[list[str], list[str]] = ([], [])
    for entry in re.split(r"\n(?=[A-Za-z0-9])", re.sub(r"^\s*#.*\n?", "", text, flags=re.MULTILINE).strip()):
        parts[entry.partition("==")[0] in sources].append(f"{entry}\n")
    return "".join(parts[0]), "".join(parts[1])


def lock_versions(text: str) -> dict[str, str]:
    """Package -> version, from a lock file's text. Pure."""
    return dict(re.findall(r"^([A-Za-z0-9][\w.-]*)==([^\s;\\]+)", text, re.MULTILINE))


def _python_environment(cache: Path, image: Path, kind: str, lock: str, progress: Progress) -> Environment:
    cache, image = cache.absolute(), image.absolute()
    hash_ = digest(RECIPE, kind, image.name, BUILDS[kind], lock)
    target = cache / "environments" / f"{kind}-{hash_}"

    def build(partial: Path) -> None:
        progress(f"building the {kind} environment (once)")
        downloads = cache / "downloads"
        downloads.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        wheels, sources = split_lock(lock)
        for name, text in (("lock.txt", lock), ("wheels.txt", wheels), ("sources.txt", sources)):
            (partial / name).write_text(text, encoding="utf-8")
        variables = {
            "UV_HTTP_RETRIES": "8",  # a name server that does not answer for some seconds is no reason to stop
            **index_variables(os.environ),
            "UV_CACHE_DIR": "/run/downloads",
            "UV_COMPILE_BYTECODE_TIMEOUT": "600",
            "PYC_INVALIDATION_MODE": "UNCHECKED_HASH",
        }
        binds = {uv_program(): Path("/usr/local/bin/uv"), downloads: Path("/run/downloads")}
        script = BUILDS[kind].replace("@python@", HOST_PYTHON)
        build_inside(cache, image, partial, target.name, script, variables, binds, progress)

    made_once(target, build, f"the {kind} environment", progress)
    return Environment(name=target.name, hash=hash_, versions=lock_versions(lock))


def index_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of this machine that say how to reach its package index, for a build. Pure.

    pip's own settings count where uv's are not given; local directories are left out (a build does not see them).
    """
    chosen = {name: value for name, value in environment.items() if INDEX_VARIABLES.match(name)}
    for pip, uv in (("PIP_INDEX_URL", "UV_DEFAULT_INDEX"), ("PIP_EXTRA_INDEX_URL", "UV_INDEX")):
        value = environment.get(pip, "")
        if value.startswith(("http://", "https://")) and not {"UV_INDEX_URL", "UV_EXTRA_INDEX_URL", uv} & set(chosen):
            chosen[uv] = value
    return chosen


def uv_program() -> Path:
    """The uv beside this Python, or on PATH. Raises TestbedError."""
    beside = Path(sys.executable).parent / "uv"
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        raise TestbedError("uv is not installed", f"{sys.executable} -m pip install uv")
    return Path(found).resolve()


def sandbox_script(image: Path, work: str, binds: Mapping[Path, Path], certificates: Path | None, command: str) -> str:
    """Shell text that runs `command` in a throw-away layer over the image. Pure.

    Args:
        image: the base tree; only read.
        work: name of an empty directory beside it; nothing is left in it.
        binds: path here (absolute) -> path inside, visible both ways.
        certificates: this machine's bundle of certificate authorities.
        command: shell text that runs inside, as root, with this machine's network.
    """
    root = f"{work}/root"
    layers = f"lowerdir={image.name},upperdir={work}/upper,workdir={work}/work"
    lines = [
        "set -e",
        # from here all is relative: paths in overlay's options can hold neither commas nor colons
        f"cd {shlex.quote(str(image.parent))}",
        f"mount -t tmpfs -o mode=755 tmpfs {work}",
        f"mkdir {work}/upper {work}/work {root}",
        f"mount -t overlay -o {layers} overlay {root}",
        f"mount --rbind /dev {root}/dev",
        f"mount -t proc proc {root}/proc",
        f"cp -L /etc/resolv.conf /etc/hosts {root}/etc/",
    ]
    if certificates is not None:
        lines.append(f"cp -L {shlex.quote(str(certificates))} {root}{CERTIFICATES}")
    for here, inside in sorted(binds.items()):
        make = "mkdir -p" if here.is_dir() else "touch"
        lines += [f"{make} {root}{inside}", f"mount --bind {shlex.quote(str(here))} {root}{inside}"]
    lines.append(f"exec chroot {root} /bin/bash -euo pipefail -c {shlex.quote(command)}")
    return "\n".join(lines) + "\n"


def build_inside(
    cache: Path,
    image: Path,
    partial: Path,
    name: str,
    script: str,
    variables: Mapping[str, str],
    binds: Mapping[Path, Path],
    progress: Progress,
) -> None:
    """Run a build script inside the image; it writes into `$PREFIX`, which is `partial` here.

    Args:
        cache: directory of the cache; the log is in its `logs/`.
        image: base tree.
        partial: directory that is filled.
        name: what it will be called; hosts see it under that name below /opt/discovery-deploy.
        script: shell text.
        variables: its environment besides PATH, LANG and PREFIX.
        binds: path here (absolute) -> path inside, visible both ways.
        progress: takes one short line per step.
    Raises:
        TestbedError: it failed; the end of its output is quoted.
    """
    partial.mkdir(exist_ok=True)
    certificates = certificate_bundle()
    inside = {**binds, partial: HOST_DIRECTORY / name}
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
    environment |= {"PREFIX": str(HOST_DIRECTORY / name), "HOME": "/root", **variables}
    if certificates is not None:
        environment["SSL_CERT_FILE"] = CERTIFICATES
    logs = private_folder(cache / "logs")
    work = image.parent / f".{name}.work"
    work.mkdir(exist_ok=True)
    text = sandbox_script(image, work.name, inside, certificates, script)

    def step(line: str) -> None:
        if line.startswith(("I: ", "Installed ", "Prepared ", "Bytecode compiled ")):
            progress(line.removeprefix("I: "))

    try:
        command = contained(["/bin/sh", "-c", text])
        run_logged(command, logs / f"{name}.log", f"the build of {name}", step, environment)
    finally:
        work.rmdir()
    (partial / "built.json").write_text(json.dumps({"image": image.name}) + "\n", encoding="utf-8")


def certificate_bundle() -> Path | None:
    """This machine's bundle of certificate authorities, or None."""
    for place in (os.environ.get("SSL_CERT_FILE"), "/etc/ssl/certs/ca-certificates.crt"):
        if place and Path(place).is_file():
            return Path(place)
    return None
