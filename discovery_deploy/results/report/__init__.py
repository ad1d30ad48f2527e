"""The report: one self-contained HTML file, the same in Markdown, and the data that both were made from."""

from discovery_deploy.results.report.build import build, write

__all__ = ["build", "write"]
