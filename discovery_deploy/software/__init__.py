"""What hosts have: image, environments, first databases, guest, box; the cache; whose code, and its proof.

It must not know how machines are had.
"""

__all__ = [
    "box",
    "builds",
    "cache",
    "enoslib_environment",
    "image",
    "inputs",
    "patches",
    "proof",
    "records",
    "shipping",
    "software",
    "stack",
    "traces",
]
