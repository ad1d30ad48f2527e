"""How the operating system is touched, and what all rooms need: errors, ssh, signals, the workspace.

It must not know any experiment.
"""

__all__ = [
    "agents",
    "data",
    "errors",
    "files",
    "interruption",
    "mistake",
    "process_settings",
    "programs",
    "progress",
    "remote",
    "site_proxy",
    "strict",
    "workspace",
]
