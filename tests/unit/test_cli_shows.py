"""What the command line prints for people, and how a run that it waited for ends."""

from datetime import timedelta

import pytest

from registry.records import Run, RunState, now
from studio.cli import run
from studio.commands.recipes import changes
from studio.runs import follow
from studio.workspace import Workspace
from tests.support.pictures import encoded, pixels
from trainers.rundir import Status


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


@pytest.fixture
def queued(home, capsys):
    """`it`, a queued run of 7 steps."""
    words = ["train", "--dataset", "cat", "--name", "it", "--set", "train.max_steps=7"]
    assert run(["--home", str(home), *words]) == 0
    capsys.readouterr()
    return Workspace.open(home).catalog.get(Run, "it")


def test_a_run_shows_what_its_recipe_changes_of_the_preset(home, queued, capsys):
    assert run(["--home", str(home), "runs", "show", "it"]) == 0
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("recipe "))
    assert line.split(maxsplit=1)[1].startswith("pocket-style with data.trigger=sks, train.max_steps=7")
    assert "keep_best" not in out
    assert run(["--home", str(home), "runs", "show", "it", "--json"]) == 0
    assert '"keep_best"' in capsys.readouterr().out


def test_a_recipe_of_another_version_hides_nothing_else():
    assert changes({"family": "sd15", "goal": "style", "warp": 9}, "pocket") == "see --json"
    assert changes({}, "") == ""


def test_a_queued_run_has_not_started(home, queued, capsys):
    def started():
        assert run(["--home", str(home), "runs", "list"]) == 0
        titles, row = capsys.readouterr().out.splitlines()[:2]
        return row[titles.index("started") : titles.index("reason")].strip()

    assert started() == ""
    begun = now() - timedelta(minutes=3)
    Workspace.open(home).catalog.update(Run, queued.id, state=RunState.RUNNING, started_at=begun)
    assert started() == "3 min ago"


def test_who_waits_for_a_resumed_run_hears_nothing_of_its_earlier_attempt(home, queued):
    ws = Workspace.open(home)
    rundir = ws.run_dir(queued.id)
    progress = follow._Progress(ws, queued.id, None)
    for stale in (
        {"state": "running", "phase": "training", "step": 3},
        {"state": "stopped", "phase_total": 10},
    ):
        rundir.write_status(Status(**stale))
        assert progress._describe(queued) == "it: queued"
    rundir.write_status(Status(state="starting", phase="caching texts", phase_total=13))
    going = ws.catalog.update(Run, queued.id, state=RunState.RUNNING)
    assert progress._describe(going) == "it: caching texts 0/13"


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
