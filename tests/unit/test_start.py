"""How the program starts."""

import gc
import importlib

from orchestrator import __main__


def test_garbage_is_collected_once_the_imports_are_done() -> None:
    importlib.reload(__main__)
    assert gc.isenabled()
