"""Where a report's numbers come from: machine, hosts, images, projects, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from discovery_deploy.bench.records import Provenance, RunRecord
from discovery_deploy.results.report import text
from discovery_deploy.software.records import changes


def load_range(runs: Sequence[RunRecord]) -> str:
    """How busy the driving machine was around the runs; on provider `local` with the hosts' own work in it."""
    loads = [run.machine_load for run in runs if run.machine_load is not None]
    if not loads:
        return text.NONE
    before, after = zip(*loads, strict=True)
    return f"{min(before):.1f} to {max(before):.1f} before runs, {min(after):.1f} to {max(after):.1f} after"


def images_view(provenance: Provenance, runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """The images that hosts were made of, the latest last: which runs were made on each, and what changed."""
    rows = []
    for index, image in enumerate(provenance.images):
        own = [run.id for run in runs if run.image == image.content]
        same = [one for one in provenance.images[:index] if one.recipe == image.recipe]
        rows.append(
            {
                "content": image.content,
                "recipe": image.recipe,
                "packages": len(image.packages),
                "runs": "all runs" if len(own) == len(runs) else ", ".join(own) or "none",
                "changes": ", ".join(changes(same[-1].packages, image.packages)) if same else "",
            }
        )
    return rows


def provenance_view(provenance: Provenance, runs: Sequence[RunRecord]) -> dict[str, Any]:
    """Provenance as tables: packages side by side, hosts that differ made visible."""
    packages: dict[str, dict[str, list[str]]] = {}
    for host in provenance.hosts:
        for name, version in host.packages.items():
            packages.setdefault(name, {}).setdefault(version, []).append(host.name)
    everywhere = len(provenance.hosts)
    return {
        "tool": f"discovery-deploy {provenance.tool_version}",
        "commit": provenance.tool_commit or "not known (no checkout)",
        "provider": provenance.provider,
        "router": provenance.wan_router,
        "machine": [
            *provenance.machine.items(),
            ("load average (1 minute)", load_range(runs)),
            *text.start_skews(run.start_skew_s for run in runs),
        ],
        "hashes": list(provenance.hashes.items()),
        "images": images_view(provenance, runs),
        "phases": [(phase, text.seconds(value)) for phase, value in provenance.phase_seconds.items()],
        "hosts": provenance.hosts,
        "projects": [
            {
                "setting": label or "the one setting",
                "project": f"{project.project} {project.version}",
                "source": project.source,
                "patches": ", ".join(project.patches) or "none",
                "tree": project.tree,
            }
            for label, projects in provenance.projects.items()
            for project in projects
        ],
        "software": [
            {
                "host": sent.host,
                "environments": ", ".join(f"{name} ({sha256[:12]})" for name, sha256 in sent.environments.items()),
                "packages_from": sent.packages_from or "nowhere: nothing was missing",
                "installed": len(sent.installed),
            }
            for sent in provenance.software
        ],
        "packages": [
            {"name": name, "version": version, "hosts": "all hosts" if len(hosts) == everywhere else ", ".join(hosts)}
            for name, versions in sorted(packages.items())
            for version, hosts in sorted(versions.items())
        ],
    }
