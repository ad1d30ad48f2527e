"""The command `discovery-deploy`, and `python -m discovery_deploy`."""

from discovery_deploy.system import process_settings


def main() -> None:
    """Settle the process before anything else is loaded: an import may warn, or look at variables."""
    process_settings.apply()
    from discovery_deploy.cli import cli

    cli.main()


if __name__ == "__main__":
    main()
