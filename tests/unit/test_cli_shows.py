"""What the command line prints for people, and how a run that it waited for ends."""

import pytest

from registry.records import Run, RunState
from studio.cli import run
from studio.runs import follow
from studio.workspace import Workspace
from tests.support.pictures import encoded, pixels


@pytest.fixture
def home(tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}.png").write_bytes(encoded(pixels(number, 64, 48)))
    (folder / "0.txt").write_text("a cat")
    assert (
        run(["--home", str(tmp_path / "home"), "datasets", "add", "cat", str(folder), "--trigger", "sks"])
        == 0
    )
    capsys.readouterr()
    return tmp_path / "home"


def test_a_data_set_shows_one_line_a_picture(home, capsys):
    assert run(["--home", str(home), "datasets", "show", "cat"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not any("{" in line for line in lines)
    (first,) = [line for line in lines if line.startswith("0.png")]
    (second,) = [line for line in lines if line.startswith("1.png")]
    assert first.split() == ["0.png", "64x48", "sks,", "a", "cat"]
    assert second.split() == ["1.png", "64x48", "sks", "no", "caption"]


@pytest.mark.parametrize(
    ("state", "code"),
    [(RunState.FINISHED, 0), (RunState.STOPPED, 0), (RunState.INTERRUPTED, 1), (RunState.FAILED, 1)],
)
def test_who_waits_for_a_run_learns_whether_there_is_an_adapter(home, capsys, monkeypatch, state, code):
    def end(workspace, record, say):
        return workspace.catalog.move_run(record.id, state, expect=RunState, reason="it was killed")

    monkeypatch.setattr(follow, "follow", end)
    words = ["train", "--dataset", "cat", "--base", "pocket", "--name", "it", "--wait"]
    assert run(["--home", str(home), *words]) == code
    err = capsys.readouterr().err
    assert ("error: run it: it was killed. see `studio runs log " in err) == bool(code)
    assert Workspace.open(home).catalog.get(Run, "it").state is state
