"""Arguments, progress for a person, exit codes."""

__all__ = ["cli"]
