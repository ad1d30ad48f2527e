"""discovery-deploy: experiments on distributed OpenStack, from a file to a report."""

__version__ = "0.1.0.dev0"
