"""What may name an experiment, a site, a host or a run. Pure; standard library only.

Such a text is safe as the name of a file and as a word of a shell: it is checked where it is read, and again where it
becomes a part of a path.
"""

from __future__ import annotations

import re

NAME = r"[a-z]([a-z0-9-]{0,18}[a-z0-9])?"
"""Of an experiment or a site: lower case, digits and dashes, at most 20 characters; it becomes part of host names."""
HOST_NAME = r"[a-z]([a-z0-9-]{0,22}[a-z0-9])?"
"""As `NAME`, at most 24 characters, so that `<site>-1` is one for every site."""
RUN_ID = r"[A-Za-z0-9_@-][A-Za-z0-9_.@~-]*"
"""Of a run's folder."""


def is_name(text: str, pattern: str = NAME) -> bool:
    """Whether a text is a name of a kind."""
    return re.fullmatch(pattern, text) is not None


def checked(text: str, pattern: str = NAME) -> str:
    """The text itself. Raises ValueError when it is not a name of the kind."""
    if not is_name(text, pattern):
        raise ValueError(f"{text!r} is not a name: it does not match {pattern}")
    return text
