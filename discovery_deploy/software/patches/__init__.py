"""Which code of which project: releases, archives, checkouts, git trees, and series of patches on them."""

__all__ = ["patch_series", "sources", "working_copy"]
