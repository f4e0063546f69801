"""`python -m orchestrator`."""

from orchestrator.cli.app import app


def main() -> None:
    """The command line."""
    app()


if __name__ == "__main__":
    main()
