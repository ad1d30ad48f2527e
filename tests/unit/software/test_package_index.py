"""Source archives from the index that pip is configured with."""

from __future__ import annotations

import hashlib
import os
import ssl
import subprocess
import threading
from http.server import HTTPServer
from pathlib import Path

import pytest

from discovery_deploy.software import stack
from discovery_deploy.software.patches import package_index
from discovery_deploy.software.patches.package_index import Candidate, FetchError, Index, Settings, chosen, settings
from tests.index_bed import Content, Handler, served

LISTED = """\
:env:.index-url='https://env.example.org/simple'
global.cert='/global.pem'
global.extra-index-url='\\nhttps://a.example.org/simple\\nfile:///srv/simple'
global.index-url='https://global.example.org/simple'
download.cert='/download.pem'
global.trusted-host='b.example.org c.example.org:8080'
install.proxy='http://not.for.us:1'
global.find-links='/opt/wheels'
global.timeout='60'
"""


def test_pips_configuration_is_taken_as_pip_takes_it() -> None:
    found = settings(LISTED, {"PIP_INDEX_URL": "https://env.example.org/simple", "UV_DEFAULT_INDEX": "https://uv"})
    assert found.indexes == (
        "https://env.example.org/simple", "https://a.example.org/simple", "file:///srv/simple",
    )  # fmt: skip
    assert (found.certificates, found.proxy, found.timeout_s) == ("/download.pem", "", 60.0)
    assert found.trusted == {"b.example.org", "c.example.org:8080"}
    assert found.find_links == ("/opt/wheels",)
    assert settings("", {}).indexes == (package_index.DEFAULT_INDEX,)
    assert settings("global.no-index='true'\n", {}).indexes == ()
    assert settings("", {"REQUESTS_CA_BUNDLE": "/my.pem"}).certificates == "/my.pem"


def test_uvs_index_counts_where_pip_has_none_of_its_own() -> None:
    assert settings(LISTED, {"UV_INDEX_URL": "https://uv.example.org"}).indexes[0] == "https://uv.example.org"
    named = {"UV_DEFAULT_INDEX": "our-own=https://uv.example.org/simple"}
    secret = {"UV_INDEX_OUR_OWN_USERNAME": "joe", "UV_INDEX_OUR_OWN_PASSWORD": "hunter2"}
    assert package_index.uv_index(named) == "https://uv.example.org/simple"
    assert package_index.uv_index({**named, **secret}) == "https://joe:hunter2@uv.example.org/simple"


def test_pip_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pip.conf").write_text("[global]\nindex-url = https://file.example.org/simple\nproxy = http://p:3128\n")
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pip.py").write_text("open('RAN', 'w')\n")  # the working directory is not asked, and may be anybody's
    monkeypatch.setenv("PIP_CONFIG_FILE", "pip.conf")
    found = package_index.pip_settings()
    assert found.indexes[0] == "https://file.example.org/simple"
    assert found.proxy == "http://p:3128"
    assert not (tmp_path / "RAN").exists()
    (tmp_path / "pip.conf").write_text("no section\n")
    with pytest.raises(FetchError, match="pip config list"):
        package_index.pip_settings()


def test_an_archive_is_called_after_project_and_version() -> None:
    assert package_index.is_sdist("oslo.db-17.2.1.tar.gz", "oslo.db", "17.2.1")
    assert package_index.is_sdist("oslo_db-17.2.0.tar.gz", "Oslo-DB", "17.2")
    for other in (
        "oslo_db-17.2.1-py3-none-any.whl", "oslo_db-17.2.10.tar.gz", "oslo_db_more-17.2.1.tar.gz", "oslo_db-17.2.1.zip",
        "../oslo_db-17.2.1.tar.gz",
    ):  # fmt: skip
        assert not package_index.is_sdist(other, "oslo.db", "17.2.1"), other


def test_pages_of_both_kinds_are_read() -> None:
    page = (
        '<base href="https://files.example.org/"><a href="x/a-1.tar.gz#sha256=' + "a" * 64 + '">a</a><a href="b%2B1">'
    )
    first, second = package_index.html_candidates(page, "https://i.example.org/simple/a/")
    assert first == Candidate("https://files.example.org/x/a-1.tar.gz", "a-1.tar.gz", "a" * 64)
    assert second.filename == "b+1"
    for broken in ("<html>", "{}", '{"files": [1]}'):
        with pytest.raises(FetchError, match="is no page of a package index"):
            package_index.json_candidates(broken, "https://joe:hunter2@i.example.org/")


def test_an_archive_with_a_hash_of_the_lock_is_chosen() -> None:
    right, wrong, unknown = Candidate("u", "f", "aa"), Candidate("u", "f", "bb"), Candidate("u", "f", "")
    assert chosen([wrong, unknown, right], "p", "1", ["aa"]) is right
    assert chosen([wrong, unknown], "p", "1", ["aa"]) is unknown
    assert chosen([wrong, right], "p", "1", []) is wrong
    with pytest.raises(FetchError, match="its sha256 is bb, which the lock does not hold"):
        chosen([wrong], "p", "1", ["aa"])


def test_a_directory_is_an_index_too(tmp_path: Path) -> None:
    page = tmp_path / "simple" / "p"
    page.mkdir(parents=True)
    (page / "index.html").write_text('<a href="p-1.0.tar.gz">p</a>')
    (page / "p-1.0.tar.gz").write_bytes(b"content")
    found = Index(Settings(indexes=(f"file://{tmp_path}/simple",))).candidates("p", "1.0")
    assert Index(Settings(indexes=())).download(found[0], tmp_path / "kept") == hashlib.sha256(b"content").hexdigest()
    (link,) = Index(Settings(indexes=(), find_links=(str(page),))).candidates("p", "1.0")
    assert link.filename == "p-1.0.tar.gz"


def test_a_password_goes_to_its_own_server_and_into_no_message(tmp_path: Path) -> None:
    with served({"p-1.0.tar.gz": b"content"}, "p") as index:
        url = index.url.replace("http://", "http://joe:hunter2@")
        there = Index(Settings(indexes=(url,)))
        (found,) = there.candidates("p", "1.0")
        assert "hunter2" not in found.url
        there.download(found, tmp_path / "kept")
        assert [authorization[:6] for _, authorization in index.asked] == ["Basic ", "Basic "]
        with pytest.raises(FetchError, match="404") as error:
            there.download(found._replace(url=found.url + "x"), tmp_path / "missing")
    for refused in (str(error.value), _refusal(there)):
        assert "hunter2" not in refused


def _refusal(index: Index) -> str:
    """Of a server that is gone."""
    with pytest.raises(FetchError) as error:
        index.candidates("p", "1.0")
    return str(error.value)


def test_what_is_neither_https_nor_near_is_not_asked() -> None:
    refused = _refusal(Index(Settings(indexes=("http://joe:hunter2@index.example.org/simple",))))
    assert refused.startswith("http://index.example.org/simple/p/: is not https")


def test_no_server_names_files_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with served({"p-1.0.tar.gz": b""}, "p", "html") as index:
        monkeypatch.setattr(
            package_index, "html_candidates", lambda page, url: [Candidate("file:///etc/shadow", "p-1.0.tar.gz", "")]
        )
        assert Index(Settings(indexes=(index.url,))).candidates("p", "1.0") == []


def test_what_is_too_long_or_too_slow_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served({"p-1.0.tar.gz": b"x" * 1000}, "p") as index:
        there = Index(Settings(indexes=(index.url,)))
        (found,) = there.candidates("p", "1.0")
        monkeypatch.setattr(package_index, "MOST_BYTES", 999)
        with pytest.raises(FetchError, match="is longer than"):
            there.download(found, tmp_path / "long")
        monkeypatch.undo()
        monkeypatch.setattr(package_index, "DOWNLOAD_LIMIT_S", -1.0)
        with pytest.raises(FetchError, match="timed out"):
            there.download(found, tmp_path / "slow")


def test_real_certificates_are_looked_at(tmp_path: Path) -> None:
    """A server whose authority nobody knows is not asked; with pip's `cert` it is, and with `trusted-host`."""
    key, certificate = tmp_path / "key", tmp_path / "cert"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out",
         str(certificate)], check=True, capture_output=True,
    )  # fmt: skip
    content = Content({"p-1.0.tar.gz": b"x"}, "/simple/p/", "json", True, [])
    server = HTTPServer(("127.0.0.1", 0), lambda *rest: Handler(content, *rest))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"https://localhost:{server.server_port}/simple"
    try:
        assert "certificate verify failed" in _refusal(Index(Settings(indexes=(url,), certificates=_system())))
        for given in (
            Settings(indexes=(url,), certificates=str(certificate)),
            Settings(indexes=(url,), certificates=_system(), trusted=frozenset({"localhost"})),
        ):
            assert len(Index(given).candidates("p", "1.0")) == 1
    finally:
        server.shutdown()
        server.server_close()


def _system() -> str:
    return str(stack.certificate_bundle() or "")
