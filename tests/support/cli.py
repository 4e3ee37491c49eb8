"""`studio` as a person types it, on a workspace of its own."""

import io
import json
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from studio.cli import run
from studio.workspace import Workspace

PATIENCE = 60.0  # seconds until a worker holds the workspace


class Said(NamedTuple):
    """How a command ended and what it printed."""

    code: int
    stdout: str
    stderr: str


def call_here(home: Path, *words: object) -> Said:
    """`studio --home HOME WORDS`, in this process."""
    out, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(errors):
        code = run(["--home", str(home), *map(str, words)])
    return Said(code, out.getvalue(), errors.getvalue())


class Studio:
    """Call it with words; it gives what `--json` printed.

    Args:
        home: The workspace.
        apart: Every command in a process of its own, which costs a second each.
    """

    def __init__(self, home: Path, *, apart: bool = False) -> None:
        self.home = home
        self._call = self._call_apart if apart else partial(call_here, home)

    def __call__(self, *words: object, code: int = 0, text: bool = False) -> Any:
        """What a call gave that ended with `code`: its JSON, or its text; its error when it is not 0."""
        done = self._call(*words) if text else self._call(*words, "--json")
        assert done.code == code, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr if code else done.stdout if text else json.loads(done.stdout)

    @contextmanager
    def working(self) -> Generator[None]:
        """Meanwhile a worker holds the workspace, so that one warm sampler serves several calls."""
        process = subprocess.Popen(self._command("worker"), stderr=subprocess.DEVNULL)
        ws = Workspace.open(self.home)
        try:
            deadline = time.monotonic() + PATIENCE
            while ws.holder() is None:
                assert process.poll() is None, "the worker ended"
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield
        finally:
            process.terminate()
            process.wait(30)
            ws.catalog.close()

    def _call_apart(self, *words: object) -> Said:
        done = subprocess.run(self._command(*words), capture_output=True, text=True, timeout=280, check=False)
        return Said(done.returncode, done.stdout, done.stderr)

    def _command(self, *words: object) -> list[str]:
        return [sys.executable, "-m", "studio.cli", "--home", str(self.home), *map(str, words)]
