"""`python -m orchestrator`."""

import gc

gc.disable()  # what imports make is kept: looking for garbage among it is a quarter of the start

from orchestrator.cli.app import app  # noqa: E402

gc.enable()


def main() -> None:
    """The command line."""
    app()


if __name__ == "__main__":
    main()
