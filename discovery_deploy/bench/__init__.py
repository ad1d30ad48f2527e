"""What is asked of the cloud: settings, runs, Rally's tasks, smoke tests; and what is written down of them.

It must not know how hosts came to be.
"""

__all__ = ["bench", "campaign", "cloud_probe", "own_tasks", "rally", "records", "request_counts", "smoke"]
