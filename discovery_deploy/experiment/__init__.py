"""What is asked: the file, its model, its mistakes; and the hosts that were leased for it.

It must not know how anything is done.
"""

__all__ = [
    "config",
    "documents",
    "fields",
    "lease",
    "model",
    "placement",
    "provider_mistakes",
    "provider_models",
    "references",
    "services",
    "source_model",
    "units",
    "wording",
]
