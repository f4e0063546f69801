"""`python -m orchestrator`."""

import gc

gc.disable()  # what imports make is kept: looking for garbage among it is a quarter of the start

from orchestrator.cli.app import app  # noqa: E402

gc.freeze()  # nor is it looked at again
gc.set_threshold(10_000, 10, 10)  # a look at all objects holds the event loop for tens of milliseconds
gc.enable()


def main() -> None:
    """The command line."""
    app()


if __name__ == "__main__":
    main()
