"""Every task of the daemon and of an edge is vital or a courtesy: none can end without a consequence."""

import ast
from collections.abc import Iterator
from pathlib import Path

import orchestrator.daemon

CLASSES = {"eternal", "courtesy"}
ROOT = {"serve.py": ["daemon.run"]}
"""What `serve` itself awaits."""


def bare(text: str) -> Iterator[str]:
    """What is started as a task without being of either class."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in (
            "create_task",
            "ensure_future",
        ):
            work = node.args[0]
            started = ast.unparse(work.func if isinstance(work, ast.Call) else work)
            if started not in CLASSES:
                yield started


def test_every_task_of_the_daemon_is_vital_or_a_courtesy() -> None:
    folder = Path(orchestrator.daemon.__file__).parent
    found = {file.name: list(bare(file.read_text())) for file in folder.rglob("*.py")}
    assert {name: tasks for name, tasks in found.items() if tasks} == ROOT


def test_a_task_of_neither_class_is_found() -> None:
    assert list(bare("asyncio.create_task(private.keep(), name='private redis')")) == ["private.keep"]
    assert list(bare("group.create_task(work)")) == ["work"]
    assert list(bare("group.create_task(eternal(name, work), name=name)")) == []
