"""Source archives from the package index that pip is configured with, by its simple API (PEP 503, PEP 691).

An archive is a file here: it is found, fetched and compared with hashes. `pip download` would run the build backend of
each archive, to ask for its metadata. Which index that is (its address, certificates, proxy) pip itself is asked for.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import ipaddress
import json
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urldefrag, urljoin, urlsplit, urlunsplit

import requests
from packaging.utils import InvalidSdistFilename, parse_sdist_filename
from packaging.version import InvalidVersion, Version

from discovery_deploy.software import stack
from discovery_deploy.software.patches.patch_series import canonical
from discovery_deploy.software.patches.trees import MOST_BYTES
from discovery_deploy.system.programs import without_passwords

DEFAULT_INDEX = "https://pypi.org/simple"
DOWNLOAD_LIMIT_S = 300.0
"""For one page or one archive, however slowly it comes."""
PIP_LIMIT_S = 120.0
MOST_PAGE_BYTES = 64_000_000
TRIES = 3
_JSON = "application/vnd.pypi.simple.v1+json"
_ACCEPT = f"{_JSON}, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.01"
_HEADERS = {"Accept": _ACCEPT, "Accept-Encoding": "identity"}
"""An archive is to come as it is, not unpacked on the way."""
_CHUNK = 1 << 16


class FetchError(Exception):
    """Why an archive cannot be had; without any password."""


class Settings(NamedTuple):
    """How to reach package indexes."""

    indexes: tuple[str, ...]
    find_links: tuple[str, ...] = ()
    """Directories, pages or addresses of pages that list archives of all projects."""
    certificates: str = ""
    """File of certificate authorities; "" for those that requests brings."""
    client_certificate: str = ""
    proxy: str = ""
    """For http and https; "" for what the environment says."""
    trusted: frozenset[str] = frozenset()
    """Hosts (with or without port) whose certificates are not looked at, and that may be reached by http."""
    timeout_s: float = 15.0
    """For each answer of a server."""


class Candidate(NamedTuple):
    """A file that an index has."""

    url: str
    filename: str
    sha256: str
    """As the index states it; "" when it does not."""


def fetch_sdist(project: str, version: str, hashes: Sequence[str], target: Path) -> str:
    """Put the source archive of a version into a file, as data.

    Args:
        project: name of the distribution.
        version: asked for.
        hashes: SHA-256 of the archives that are allowed, in hexadecimal; none: any that the index has.
        target: the file, which is not there.
    Returns:
        SHA-256 of the archive, in hexadecimal.
    Raises:
        FetchError: no index has it, what is there has another hash, or it cannot be fetched.
    """
    index = Index(pip_settings())
    candidate = chosen(index.candidates(project, version), project, version, hashes)
    found = index.download(candidate, target)
    if candidate.sha256 not in ("", found):
        raise FetchError(
            f"{without_passwords(candidate.url)}: its sha256 is {found}, and the index says {candidate.sha256}"
        )
    if hashes and found not in hashes:
        raise FetchError(_not_locked(candidate, found))
    return found


def _not_locked(candidate: Candidate, sha256: str) -> str:
    return f"{without_passwords(candidate.url)}: its sha256 is {sha256}, which the lock does not hold"


def chosen(candidates: Sequence[Candidate], project: str, version: str, hashes: Sequence[str]) -> Candidate:
    """The archive to fetch: the first whose stated hash is allowed, else the first that states none. Pure.

    Raises:
        FetchError: there is none.
    """
    if not candidates:
        raise FetchError(f"{project}=={version}: no source archive (.tar.gz) on the index")
    if not hashes:
        return candidates[0]
    for fits in (hashes, ("",)):
        for candidate in candidates:
            if candidate.sha256 in fits:
                return candidate
    raise FetchError(_not_locked(candidates[0], candidates[0].sha256))


def is_sdist(filename: str, project: str, version: str) -> bool:
    """Whether a file is called as the source archive of a version is. Pure."""
    if not filename.endswith(".tar.gz"):
        return False
    try:
        name, found = parse_sdist_filename(filename)
        return name == canonical(project) and found == Version(version)
    except (InvalidSdistFilename, InvalidVersion):
        return False


# settings


def pip_settings() -> Settings:
    """What pip of this Python (else of PATH, else one that uv brings) says of its configuration. Raises FetchError."""
    if importlib.util.find_spec("pip"):
        command = [sys.executable, "-m", "pip"]
    elif found := shutil.which("pip"):
        command = [found]
    else:
        command = [str(stack.uv_program()), "--quiet", "tool", "run", "--python", sys.executable, "pip"]
    environment = dict(os.environ)
    if file := environment.get("PIP_CONFIG_FILE"):
        environment["PIP_CONFIG_FILE"] = str(Path(file).absolute())
    try:
        done = subprocess.run(
            [*command, "--disable-pip-version-check", "config", "list"],
            cwd="/",  # `python -m pip` would run a pip.py of the working directory
            env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=PIP_LIMIT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise FetchError(f"`pip config list` timed out after {PIP_LIMIT_S:g} s") from error
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise FetchError(f"`pip config list` failed: {said[-1] if said else 'it says nothing'}")
    return settings(done.stdout, os.environ)


def settings(listed: str, environment: Mapping[str, str]) -> Settings:
    """How to reach indexes. Pure but for looking whether a file of certificates is there.

    Args:
        listed: output of `pip config list`: lines such as `global.index-url='https://...'`, `:env:.` for variables.
        environment: variables; uv's index counts where pip's own variable names none.
    """
    known: dict[str, str] = {}
    lines = [re.fullmatch(r"(:env:|global|download)\.([\w-]+)=(.*)", line) for line in listed.splitlines()]
    for section in ("global", "download", ":env:"):  # the last one counts
        for match in lines:
            if match and match[1] == section:
                known[match[2].replace("_", "-").lower()] = str(ast.literal_eval(match[3]))
    index = known.get("index-url", DEFAULT_INDEX)
    if "PIP_INDEX_URL" not in environment:
        index = uv_index(environment) or index
    indexes = [index, *known.get("extra-index-url", "").split()]
    if known.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        indexes = []
    bundle = known.get("cert") or environment.get("REQUESTS_CA_BUNDLE") or environment.get("CURL_CA_BUNDLE")
    return Settings(
        indexes=tuple(indexes),
        find_links=tuple(known.get("find-links", "").split()),
        certificates=bundle or str(stack.certificate_bundle() or ""),
        client_certificate=known.get("client-cert", ""),
        proxy=known.get("proxy", ""),
        trusted=frozenset(known.get("trusted-host", "").split()),
        timeout_s=float(known.get("timeout") or known.get("default-timeout") or 15.0),
    )


def uv_index(environment: Mapping[str, str]) -> str:
    """The index that uv's variables name, with the user name and password that they have for it; "" for none. Pure."""
    value = environment.get("UV_DEFAULT_INDEX") or environment.get("UV_INDEX_URL") or ""
    named = re.match(r"([\w.-]+)=(?=[a-z]+:)", value)
    if named is None:
        return value
    parts = urlsplit(value[named.end() :])
    prefix = "UV_INDEX_" + re.sub(r"\W|\.|-", "_", named[1]).upper()
    user, password = environment.get(f"{prefix}_USERNAME", ""), environment.get(f"{prefix}_PASSWORD", "")
    if (user or password) and "@" not in parts.netloc:
        parts = parts._replace(netloc=f"{user}:{password}@{parts.netloc}")
    return urlunsplit(parts)


# pages


class _Links(HTMLParser):
    """Addresses of a page's links, and its base."""

    def __init__(self) -> None:
        super().__init__()
        self.base = ""
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A tag with its attributes."""
        where = dict(attrs).get("href")
        if where and tag == "base" and not self.base:
            self.base = where
        elif where and tag == "a":
            self.found.append(where)


def html_candidates(page: str, url: str) -> list[Candidate]:
    """Files that a page of PEP 503 lists, with absolute addresses. Pure."""
    links = _Links()
    links.feed(page)
    base = urljoin(url, links.base)
    found = []
    for link in links.found:
        address, fragment = urldefrag(urljoin(base, link))
        stated = re.search(r"\bsha256=([0-9a-f]{64})\b", fragment)
        filename = unquote(urlsplit(address).path.rpartition("/")[2])
        found.append(Candidate(address, filename, stated[1] if stated else ""))
    return found


def json_candidates(page: str, url: str) -> list[Candidate]:
    """Files that a page of PEP 691 lists, with absolute addresses. Pure. Raises FetchError."""
    try:
        return [
            Candidate(urljoin(url, str(file["url"])), str(file["filename"]), str(file["hashes"].get("sha256", "")))
            for file in json.loads(page)["files"]
        ]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise FetchError(f"{without_passwords(url)}: is no page of a package index (PEP 691)") from error


class Index:
    """Asks indexes for pages and archives.

    Args:
        settings: how to reach them.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.session = requests.Session()
        self._credentials = {
            _host(urlsplit(index).netloc): urlsplit(index).netloc.rpartition("@")[0]
            for index in settings.indexes
            if "@" in urlsplit(index).netloc
        }  # an index's files are had with its password, as by pip

    def candidates(self, project: str, version: str) -> list[Candidate]:
        """The source archives of a version, in the order of indexes. Raises FetchError when none can be asked."""
        found: list[Candidate] = []
        problems: list[str] = []
        pages = [f"{index.rstrip('/')}/{canonical(project)}/" for index in self.settings.indexes]
        for page in [*pages, *self.settings.find_links]:
            try:
                listed = self._listed(page)
            except FetchError as error:
                problems.append(str(error))
                continue
            found += [file for file in listed if is_sdist(file.filename, project, version)]
        if problems and not found:
            raise FetchError("; ".join(problems))
        return found

    def _listed(self, page: str) -> list[Candidate]:
        local = _local(page)
        if local is None:
            return self._asked(page)
        if local.is_dir() and (local / "index.html").is_file():
            local = local / "index.html"
        try:
            if local.is_dir():
                return [Candidate(file.as_uri(), file.name, "") for file in sorted(local.iterdir()) if file.is_file()]
            return html_candidates(local.read_text(encoding="utf-8", errors="replace"), local.as_uri())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise FetchError(f"{local}: {error.strerror}") from error

    def _asked(self, url: str) -> list[Candidate]:
        kept = bytearray()
        kind = encoding = final = ""
        for response, chunk in self._read(url, MOST_PAGE_BYTES, missing_is_empty=True):
            kept += chunk
            kind, final = response.headers.get("Content-Type", ""), without_passwords(response.url)
            encoding = response.encoding or "utf-8"
        try:
            text = kept.decode(encoding or "utf-8", "replace")
        except LookupError:
            text = kept.decode("utf-8", "replace")
        found = json_candidates(text, final) if kind.startswith(_JSON) else html_candidates(text, final)
        return [file for file in found if _local(file.url) is None]  # no server names files of this machine

    def download(self, candidate: Candidate, target: Path) -> str:
        """Write an archive to a file; its SHA-256, in hexadecimal. Raises FetchError."""
        whole = hashlib.sha256()
        local = _local(candidate.url)
        chunks = _chunks(local) if local is not None else (part for _, part in self._read(candidate.url, MOST_BYTES))
        with target.open("xb") as stream:
            for chunk in chunks:
                whole.update(chunk)
                stream.write(chunk)
        return whole.hexdigest()

    def _read(self, url: str, most: int, missing_is_empty: bool = False) -> Iterator[tuple[requests.Response, bytes]]:
        """The parts of what is at an address. Raises FetchError: not there, too long, too slow, not to be trusted."""
        end, size = time.monotonic() + DOWNLOAD_LIMIT_S, 0
        try:
            with self._answer(url) as response:
                for followed in (*response.history, response):
                    self._secure(followed.url)
                if response.status_code == 404 and missing_is_empty:
                    return
                if response.status_code != 200:
                    raise FetchError(f"{without_passwords(url)}: {response.status_code} {response.reason}")
                yield response, b""
                for chunk in response.iter_content(_CHUNK):
                    size += len(chunk)
                    if size > most:
                        raise FetchError(f"{without_passwords(url)}: is longer than {most // 1_000_000} MB")
                    if time.monotonic() > end:
                        raise FetchError(f"{without_passwords(url)}: timed out after {DOWNLOAD_LIMIT_S:g} s")
                    yield response, chunk
        except (requests.RequestException, OSError) as error:
            raise FetchError(f"{without_passwords(url)}: {without_passwords(str(error))[:300]}") from error

    def _answer(self, url: str) -> requests.Response:
        """The answer to a request, of which only the head is read; asked again when a server has none at the moment."""
        self._secure(url)
        parts, given = urlsplit(url), self.settings
        credentials = self._credentials.get(_host(parts.netloc), "")
        if credentials and "@" not in parts.netloc:
            url = urlunsplit(parts._replace(netloc=f"{credentials}@{parts.netloc}"))
        proxies = {"http": given.proxy, "https": given.proxy} if given.proxy else None
        verify: bool | str = given.certificates or True
        for attempt in range(1, TRIES + 1):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of urllib3: a host that is trusted without a certificate
                    response = self.session.get(
                        url, headers=_HEADERS, stream=True, timeout=given.timeout_s, proxies=proxies,
                        verify=False if self._trusted(parts.netloc) else verify, cert=given.client_certificate or None,
                    )  # fmt: skip
                if response.status_code < 500 or attempt == TRIES:
                    return response
                response.close()
            except (requests.ConnectionError, requests.Timeout):
                if attempt == TRIES:
                    raise
            time.sleep(0.5 * attempt)
        raise AssertionError

    def _trusted(self, netloc: str) -> bool:
        host = _host(netloc)
        return bool({host, urlsplit(f"//{host}").hostname} & self.settings.trusted)

    def _secure(self, url: str) -> None:
        """Raises FetchError for what pip does not trust either: neither https, nor this machine, nor said to be."""
        parts = urlsplit(url)
        if parts.scheme == "https" or (parts.scheme == "http" and self._trusted(parts.netloc)):
            return
        if parts.scheme == "http" and _is_this_machine(parts.hostname or ""):
            return
        advice = "name its host in pip's `trusted-host` if it is to be trusted"
        raise FetchError(f"{without_passwords(url)}: is not https; {advice}")


def _host(netloc: str) -> str:
    """Host and port, without user name and password."""
    return netloc.rpartition("@")[2].lower()


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _local(url: str) -> Path | None:
    """The file or directory that an address without http names; None for one with."""
    parts = urlsplit(url)
    if parts.scheme in ("http", "https"):
        return None
    return Path(unquote(parts.path) if parts.scheme == "file" else url).expanduser().absolute()


def _chunks(file: Path) -> Iterator[bytes]:
    try:
        if file.stat().st_size > MOST_BYTES:
            raise FetchError(f"{file}: is longer than {MOST_BYTES // 1_000_000} MB")
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                yield chunk
    except OSError as error:
        raise FetchError(f"{file}: {error.strerror}") from error
