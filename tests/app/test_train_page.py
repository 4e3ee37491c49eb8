"""Train > Everything: only what counts is in sight, and what is wrong stands once, at its field."""

import pytest
from streamlit.testing.v1 import AppTest

from registry.records import Dataset, Run
from studio.app.forms import wrong_values
from studio.workspace import Workspace
from tests.app.conftest import Open
from tests.app.test_pages import button, texts
from trainers.recipe import Recipe, preset

SERIAL = "r0-pocket-style-normal-"


@pytest.fixture
def page(filled: Workspace, open_page: Open) -> AppTest:
    """The page with the form open, for the pocket base's style preset."""
    dataset = filled.catalog.get(Dataset, "zibbo")
    at = open_page(filled, "train", dataset=dataset.id, goal="style", base="pocket")
    at.session_state["everything"] = True
    return at.run()


def fields(at: AppTest) -> set[str]:
    """Dotted keys of the widgets in sight."""
    kinds = (at.number_input, at.selectbox, at.toggle, at.text_input, at.text_area)
    keys = [str(widget.key) for kind in kinds for widget in kind]
    return {key.removeprefix(SERIAL) for key in keys if key.startswith(SERIAL)}


def test_fields_of_other_methods_and_objectives_are_folded_away(page: AppTest):
    assert not page.exception
    seen = fields(page)
    assert {"adapter.rank", "adapter.conv_alpha", "objective.snr_gamma", "optimizer.lr"} <= seen
    assert not seen & {"adapter.oft_block", "adapter.lokr_factor", "objective.shift", "data.text_length"}
    page.selectbox(key=f"{SERIAL}adapter.method").set_value("lokr").run()
    assert {"adapter.lokr_factor", "adapter.tucker"} <= fields(page)
    page.session_state[f"{SERIAL}idle-adapter"] = True
    page.run()
    assert not page.exception
    assert "adapter.oft_block" in fields(page)


def test_a_changed_field_stays_in_sight_and_is_said_to_have_no_effect(page: AppTest):
    page.session_state["changed-pocket-style"] = {"data.text_length": 128}
    page.run()
    assert "data.text_length" in fields(page)
    assert "data.text_length has no effect here" in texts(page)


def test_what_the_method_refuses_of_the_preset_is_in_sight(page: AppTest):
    page.selectbox(key=f"{SERIAL}adapter.method").set_value("oft").run()
    assert not page.exception
    seen = fields(page)
    assert {"adapter.oft_block", "adapter.conv_rank"} <= seen
    assert not seen & {"adapter.rank", "adapter.lokr_factor"}
    assert texts(page).count("Must be 0 with oft: PEFT's oft adds up overlapping patches") == 1


def test_what_is_wrong_is_said_once_at_its_field(page: AppTest, filled: Workspace):
    page.text_input(key=f"{SERIAL}adapter.targets").set_value("(").run()
    assert not page.exception
    said = texts(page)
    assert "--set" not in said
    assert said.count("Must be a regular expression") == 1
    assert "Training can start when the values marked below are right." in said
    assert not [b for b in page.button if b.label == "Start training"]
    page.text_input(key=f"{SERIAL}adapter.targets").set_value("nothing").run()
    assert texts(page).count("'nothing' matches no layer of this base.") == 1
    page.session_state["everything"] = False
    page.run()
    assert texts(page).count("matches no layer of this base.") == 1
    page.session_state["changed-pocket-style"] = {}
    page.run()
    assert button(page, "Start training")
    assert filled.catalog.count(Run) > 0


def test_faults_are_sentences_by_field():
    def fits(_: Recipe) -> None:
        return None

    start = preset("sd15", "style", "pocket")
    changed = {"adapter.rank": 0, "optimizer.text_lr": 20.0}
    assert wrong_values(start, changed, fits) == {
        "adapter.rank": "Must be a whole number from 1 to 1024.",
        "optimizer.text_lr": "Must be a number above 0 and at most 10 or none.",
    }
    assert wrong_values(start, {"adapter.rank": 8}, fits) == {}
