"""`python -m discovery_deploy`."""

from discovery_deploy.cli import main

main()
