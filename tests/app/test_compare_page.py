"""The Compare page: form, grid, slider, blind votes; what its buttons do."""

import base64
import io
import json
from typing import Any

import pytest
from PIL import Image as Pixels
from streamlit.testing.v1 import AppTest

from registry.records import Adapter, Checkpoint, Comparison, Job, JobState, Sample, Vote
from studio.app.components import compare_parts
from studio.app.components.compare_builder import ADAPTERS
from studio.compare.grids import cells_of, progress, spec_of
from studio.workspace import Workspace
from tests.app.compared import compared
from tests.app.conftest import Open
from tests.support.sampling import add_adapter

NAMES = ("inkish", "washy")


class Part:
    """Stands for a component in the browser: keeps what it is sent, answers what it is told to."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.answer: dict[str, Any] = {}

    def __call__(self, *, data: dict[str, Any], **_: Any) -> dict[str, Any]:
        self.sent.append(data)
        answer, self.answer = self.answer, {}
        return answer


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> dict[str, Part]:
    found = {name: Part() for name in ("_GRID", "_SLIDER", "_ARENA")}
    for name, part in found.items():
        monkeypatch.setattr(compare_parts, name, part)
    return found


@pytest.fixture
def grid_of(empty: Workspace) -> Comparison:
    for number, name in enumerate(NAMES):
        add_adapter(empty, name, seed=number)
    return compared(empty, adapters=NAMES)


def said(at: AppTest) -> str:
    kinds = ("title", "subheader", "markdown", "caption", "error", "warning")
    parts = [str(element.value) for kind in kinds for element in getattr(at, kind)]
    return "\n".join([*parts, *(button.label for button in at.button)]).replace("\\", "")


def press(at: AppTest, key: str) -> None:
    at.button(key=key).click().run()
    assert not at.exception


def test_a_grid_is_put_together_and_queued(empty: Workspace, open_page: Open, parts: dict[str, Part]):
    assert "Nothing compared yet" in said(open_page(empty, "compare"))
    ink = add_adapter(empty, "inkish")
    at = open_page(empty, "compare", new="1", adapter=ink.id)
    assert "Also without any adapter" in [toggle.label for toggle in at.toggle]
    draw = next(button for button in at.button if button.label == "Draw the grid")
    assert draw.disabled
    at.text_area(key="c-prompts").set_value("a red circle\n\n a blue star ").run()
    at.multiselect(key="c-weights").set_value(["0.5", "1"]).run()
    assert "**16 cells**" in said(at)
    assert "2 adapters × 2 weights × 2 seeds × 2 prompts" in said(at)
    assert "how long it takes is not known" in said(at)
    at.multiselect(key="c-seeds").set_value([str(n) for n in range(400)]).run()
    assert "At most 2,000" in said(at)
    at.multiselect(key="c-seeds").set_value(["7", "x"]).run()
    next(button for button in at.button if button.label == "Draw the grid").click().run()
    assert "seed 'x'" in at.error[0].value.replace("\\", "")
    assert empty.catalog.count(Job) == 0
    at.multiselect(key="c-seeds").set_value(["7"]).run()
    at.text_input(key="c-name").set_value("inks")
    next(button for button in at.button if button.label == "Draw the grid").click().run()
    assert not at.exception
    made = empty.catalog.get(Comparison, "inks")
    assert spec_of(made).size == 8
    assert empty.catalog.count(Job, background=True, state=JobState.QUEUED) == 6
    assert at.title[0].value == "inks"
    assert "Your pictures appear here" in said(open_page(empty, "sample")), "cells are no samples of a person"


def test_the_grid_grows_stops_goes_on_and_goes(
    empty: Workspace, open_page: Open, grid_of: Comparison, parts: dict[str, Part]
):
    at = open_page(empty, "compare", comparison=grid_of.id)
    assert not at.exception
    sent = parts["_GRID"].sent[-1]
    assert sent["columns"] == ["none", *NAMES]
    assert [row["label"] for row in sent["rows"]] == ["strength 0.5", "strength 1"]
    assert sent["rows"][1]["cells"][2]["text"].startswith("washy · strength 1 · a red circle")
    at.selectbox(key=f"c-columns-{grid_of.id}").set_value("seed").run()
    assert parts["_GRID"].sent[-1]["columns"] == ["seed 1", "seed 2"]
    at.selectbox(key="c-grow-axis").set_value("seed").run()
    at.text_input(key="c-grow-seed").set_value("3").run()
    press(at, "c-grow-go")
    cells = cells_of(empty, grid_of)
    assert (len(cells), progress(empty, grid_of, cells).live) == (36, 10)
    press(at, "c-stop")
    assert progress(empty, grid_of, cells_of(empty, grid_of)).missing == 10
    at = open_page(empty, "compare", comparison=grid_of.id)
    assert "10 cells not drawn" in said(at)
    press(at, "c-go-on")
    assert progress(empty, grid_of, cells_of(empty, grid_of)).live == 10
    press(at, "c-remove")
    assert (empty.catalog.count(Comparison), empty.catalog.count(Sample)) == (0, 0)


def test_a_large_picture_leads_to_the_slider_and_to_its_settings(
    empty: Workspace, open_page: Open, grid_of: Comparison, parts: dict[str, Part]
):
    at = open_page(empty, "compare", comparison=grid_of.id)
    for action, cell in (("left", "0/0/0/0"), ("right", "2/1/0/0")):
        parts["_GRID"].answer = {"acted": {"action": action, "cell": cell}}
        at.run()
    assert not at.exception
    shown = parts["_SLIDER"].sent[-1]
    assert (shown["left"]["name"], shown["right"]["name"]) == ("none · strength 0.5", "washy · strength 1")
    at.segmented_control(key="c-view").set_value("grid").run()
    parts["_GRID"].answer = {"acted": {"action": "use", "cell": "1/1/1/0"}}
    at.run()
    assert not at.exception
    assert at.title[0].value == "Sample"
    assert at.text_area(key="s-prompt").value == "two blue stars above a green square"


def test_names_are_hidden_until_the_vote(
    empty: Workspace, open_page: Open, grid_of: Comparison, parts: dict[str, Part]
):
    at = open_page(empty, "compare", comparison=grid_of.id)
    at.segmented_control(key="c-view").set_value("arena").run()
    assert not at.exception
    sent = parts["_ARENA"].sent[-1]
    assert set(sent) == {"token", "pictures"}
    for address in sent["pictures"]:
        head, data = address.split(",")
        assert head == "data:image/png;base64"
        with Pixels.open(io.BytesIO(base64.b64decode(data))) as picture:
            assert picture.info == {}, "what a file says of itself would give its adapter away"
    hidden = [*NAMES, "none", *(cell.sample_id for cell in cells_of(empty, grid_of).values())]
    page = said(at) + json.dumps(sent["token"])
    assert not [name for name in hidden if name in page]
    parts["_ARENA"].answer = {"voted": {"token": "of another pair", "outcome": "left"}}
    at.run()
    assert empty.catalog.count(Vote) == 0
    token = parts["_ARENA"].sent[-1]["token"]
    parts["_ARENA"].answer = {"voted": {"token": token, "outcome": "tie"}}
    at.run()
    assert not at.exception
    (vote,) = empty.catalog.list(Vote)
    assert (vote.axis, vote.outcome) == ("adapter", "tie")
    assert parts["_ARENA"].sent[-1]["token"] != token
    assert "Left was" in said(at)
    assert "Who is ahead" in said(at)
    press(at, "c-undo")
    assert empty.catalog.count(Vote) == 0


def test_an_adapter_and_the_checkpoints_of_a_run_lead_here(filled: Workspace, open_page: Open):
    ink = filled.catalog.get(Adapter, "ink wash")
    at = open_page(filled, "adapters", adapter=ink.id)
    next(button for button in at.button if button.label == "Compare").click().run()
    assert at.title[0].value == "Compare"
    assert at.session_state[ADAPTERS] == [ink.id]
    saved = filled.catalog.list(Checkpoint, limit=1)[0]
    at = open_page(filled, "runs", run=saved.run_id)
    next(button for button in at.button if button.label == "Compare them").click().run()
    assert not at.exception
    assert at.title[0].value == "Compare"
