"""`studio datasets` as a person types it."""

import io
from pathlib import Path

import pytest

from registry.records import Dataset
from studio.workspace import Workspace
from tests.support.cli import call_here
from tests.support.supervision import make_dataset


class Terminal(io.StringIO):
    """A person's answer."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("words", "answer", "code"), [((), "n", 1), ((), "y", 0), (("--yes",), "n", 0)])
def test_a_terminal_is_asked_before_a_data_set_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], answer: str, code: int
):
    ws = Workspace.open(tmp_path / "home")
    make_dataset(ws, "cat")
    monkeypatch.setattr("sys.stdin", Terminal(f"{answer}\n"))
    done = call_here(ws.home, "datasets", "remove", "cat", *words)
    what = "data set cat with 3 pictures, captions included"
    assert done.code == code
    assert (f"Remove {what} for good? [y/N]" in done.stderr) == (not words)
    assert done.stdout == ("" if code else f"Removed {what}.\n")
    assert len(ws.catalog.list(Dataset)) == code
