"""The report in headless Chromium: it asks nothing of any machine, its figures are there, it can be printed.

Chromium runs in a network namespace of its own, without any network.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from discovery_deploy.bench import rally
from discovery_deploy.results import report
from tests.synthetic_campaign import campaign, report_of

pytestmark = pytest.mark.integration

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1366,5200"),
]
OWN_SERVICES = re.compile(r"https?://[a-z0-9.-]+\.(google|googleapis)\.com/")
"""What Chromium asks by itself (updates, time) whatever page is open; the report names no such host."""
OUTSIDE = "http://192.0.2.1/outside.png"


def chromium(folder: Path, page: Path, *options: str) -> tuple[str, list[str]]:
    """Open a page; returns what `--dump-dom` printed and every URL that was asked for on its behalf."""
    log = folder / "net.json"
    command = ["unshare", "--net", "chromium", *FLAGS, f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}",
               *options, page.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    events = json.loads(log.read_text())["events"]
    urls = {str(event.get("params", {}).get("url", "")) for event in events}
    asked = sorted(url for url in urls if re.match(r"(https?|wss?|ftp):", url))
    return done.stdout, [url for url in asked if not OWN_SERVICES.match(url)]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = campaign()
    reports = list(made.reports)
    failing = report_of(reports[3][0].scenario.task, 20, 0.05, 0.0, "x", failing=3)
    reports[3] = (*reports[3][:2], failing)
    table = rally.table(reports, [factor.path for factor in made.experiment.campaign.factors])
    files = report.build(made.experiment, made.runs, table, made.provenance, rally.load_tasks(), source="name: x\n")
    return report.write(files, tmp_path_factory.mktemp("report"))


def test_chromium_shows_every_figure_and_asks_nobody(page: Path, tmp_path: Path) -> None:
    dom, urls = chromium(tmp_path, page, "--dump-dom")
    assert urls == []
    assert "google" not in page.read_text()
    assert dom.count("<svg") == dom.count("</svg>") == 1 + 2 * 3
    assert dom.count("<figure>") == 7
    assert "whole iteration" in dom


def test_a_request_would_have_been_seen_and_the_page_forbids_it(page: Path, tmp_path: Path) -> None:
    html = page.read_text().replace("</main>", f'<img src="{OUTSIDE}"></main>')
    guarded, open_page = tmp_path / "guarded.html", tmp_path / "open.html"
    guarded.write_text(html)
    open_page.write_text(re.sub(r"<meta http-equiv[^>]*>", "", html))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert OUTSIDE in chromium(tmp_path / "a", open_page, "--dump-dom")[1]
    assert chromium(tmp_path / "b", guarded, "--dump-dom")[1] == []


def test_a_screenshot_and_a_print_can_be_made(page: Path, tmp_path: Path) -> None:
    """Set DISCOVERY_DEPLOY_SCREENSHOTS to a directory to keep them and look at them."""
    kept = Path(os.environ.get("DISCOVERY_DEPLOY_SCREENSHOTS", tmp_path))
    kept.mkdir(parents=True, exist_ok=True)
    screenshot, print_ = tmp_path / "shot.png", tmp_path / "print.pdf"
    chromium(tmp_path, page, f"--screenshot={screenshot}")
    chromium(tmp_path, page, "--no-pdf-header-footer", f"--print-to-pdf={print_}")
    assert screenshot.read_bytes().startswith(b"\x89PNG")
    assert screenshot.stat().st_size > 100_000
    assert print_.read_bytes().startswith(b"%PDF")
    if kept != tmp_path:
        shutil.copy(screenshot, kept / "report.png")
        shutil.copy(print_, kept / "report.pdf")
