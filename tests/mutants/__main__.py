"""`python -m tests.mutants [WORD]`: plant each bug in a copy of the tree and see whether a test fails.

Needs Docker, as the contract tests do. Exits with 1 when a bug survives.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.mutants.bugs import BUGS, Bug

ROOT = Path(__file__).parents[2]
PLANTED = "tests/unit/test_planted_bugs.py"
"""It looks for what a bug replaces, so it fails with every bug."""

out = Console(highlight=False, width=120)


def run(tree: Path, tests: str) -> tuple[bool, str]:
    """Whether the tests pass in a tree, and the name of the first one that does not."""
    words = ["-q", "-x", "-p", "no:cacheprovider", f"--ignore={PLANTED}", *shlex.split(tests)]
    command = [sys.executable, "-m", "pytest", *words]
    done = subprocess.run(
        command,
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(tree)},
        check=False,
    )
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return done.returncode == 0, failed[0].split(" - ")[0] if failed else done.stdout[-200:]


def plant(tree: Path, bug: Bug) -> None:
    """Write the bug into a tree.

    Raises:
        AssertionError: The line that it replaces is not there exactly once.
    """
    path = tree / "orchestrator" / bug.file
    text = path.read_text()
    assert text.count(bug.right) == 1, f"{bug.name}: {text.count(bug.right)} times in {bug.file}"
    path.write_text(text.replace(bug.right, bug.wrong))


def main(word: str) -> int:
    """Plant them one after the other."""
    table = Table("bug", "noticed by", "s")
    survived = 0
    chosen = [bug for bug in BUGS if word in bug.name]
    for bug in chosen:
        with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
            tree = Path(folder) / "tree"
            ignored = shutil.ignore_patterns(".git", ".venv", ".*cache*", "__pycache__", ".hypothesis")
            shutil.copytree(ROOT, tree, ignore=ignored)
            plant(tree, bug)
            began = time.monotonic()
            passed, noticed = run(tree, bug.tests)
        survived += passed
        out.print(f"{'SURVIVED' if passed else 'caught'}: {bug.name}", style="red" if passed else "dim")
        table.add_row(bug.name, "[red]nobody[/]" if passed else noticed, f"{time.monotonic() - began:.0f}")
    out.print(table)
    out.print(f"{len(chosen) - survived} of {len(chosen)} caught")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else ""))
