"""Whether text is Python, as hosts will have it compiled; nothing of it is executed. Pure."""

from __future__ import annotations

import sys
import warnings

HOSTS = (3, 11)
"""Python of hosts: an older one than theirs would refuse what they take."""


def syntax_mistake(content: bytes) -> str | None:
    """Line and reason why a file cannot be compiled; None when it can, or when this Python is too old to tell."""
    if sys.version_info < HOSTS:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(content, "file", "exec", dont_inherit=True)
    except SyntaxError as error:
        return f"line {error.lineno}: {error.msg}" if error.lineno else str(error.msg)
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        return str(error) or "nested too deeply"
    return None
