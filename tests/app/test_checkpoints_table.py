"""The checkpoints of a run on its page: ranked, live, empty, and kept with a click."""

import pytest

from registry.records import Adapter, Checkpoint, Run, RunState
from studio.workspace import Workspace
from tests.app.conftest import Open
from tests.app.test_pages import button, texts
from tests.support.fake_trainer import save_checkpoint
from trainers.rundir import KEY_VARIABLE


def the_run(ws: Workspace, state: RunState) -> Run:
    return ws.catalog.list(Run, state=state)[0]


def test_a_finished_run_shows_its_checkpoints_best_first(filled: Workspace, open_page: Open):
    run = the_run(filled, RunState.FINISHED)
    at = open_page(filled, "runs", run=run.id)
    assert not at.exception
    said = texts(at)
    assert "2 pictures are held out to judge them by: 03.png, 11.png" in said
    places = [said.index(f"**Step {step}**") for step in (300, 200, 400, 100)]
    assert places == sorted(places)
    assert "Its loss on 2 held-out pictures is the lowest, 0.1310." in said
    assert "could learn more" in said
    assert "held-out pictures 0.1310 · training pictures 0.1239 · other prompts 0.0057" in said
    assert "stopping now" not in said
    assert "At fixed noise; on held-out pictures it rises with copying" in said


def test_a_run_that_gets_worse_says_so_while_it_can_be_stopped(filled: Workspace, open_page: Open):
    run = the_run(filled, RunState.RUNNING)
    at = open_page(filled, "runs", run=run.id)
    assert "has risen since step 100" in at.info[0].value.replace("\\", "")
    button(at, "Stop")


def test_a_run_without_checkpoints_says_where_they_will_be(filled: Workspace, open_page: Open):
    at = open_page(filled, "runs", run=the_run(filled, RunState.QUEUED).id)
    assert not at.exception
    assert "They appear here as they are saved" in texts(at)


def test_a_click_keeps_a_checkpoint(filled: Workspace, open_page: Open, monkeypatch: pytest.MonkeyPatch):
    run = the_run(filled, RunState.FINISHED)
    monkeypatch.setenv(KEY_VARIABLE, filled.key.hex())
    save_checkpoint(filled.run_dir(run.id), 200, 0.1)
    at = open_page(filled, "runs", run=run.id)
    at.button(key=f"keep-{run.id}-200").click().run()
    assert not at.exception
    (kept,) = filled.catalog.list(Adapter, run_id=run.id, step=200)
    assert filled.catalog.get(Run, run.id).pick_step == 200
    said = texts(at)
    assert "your pick" in said
    assert f"keep-{run.id}-200" not in [b.key for b in at.button]
    at.button(key=f"keep-{run.id}-100").click().run()  # its files are gone
    assert "does not exist" in at.error[0].value
    assert filled.catalog.list(Adapter, run_id=run.id, step=200) == [kept]


def test_a_whole_model_and_an_unmeasured_run_offer_less(filled: Workspace, open_page: Open):
    run = the_run(filled, RunState.FINISHED)
    whole = run.recipe | {"adapter": run.recipe["adapter"] | {"method": "full"}}
    filled.catalog.update(Run, run.id, recipe=whole)
    filled.run_dir(run.id).file("metrics.jsonl").write_text("")
    for row in filled.catalog.list(Checkpoint, run_id=run.id):
        filled.catalog.update(Checkpoint, row.id, metrics={})
    at = open_page(filled, "runs", run=run.id)
    assert not at.exception
    assert "Keep this one" not in [b.label for b in at.button]
    assert "Nothing was measured of them" in texts(at)
