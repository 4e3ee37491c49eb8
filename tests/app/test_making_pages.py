"""Dialogs that make something of adapters and bases, and their ways in: merge, bake, extract, export."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from registry.formats.load import load_adapter
from registry.records import Adapter, Base
from studio.app import shell, state
from studio.operations import Use, bake
from studio.workspace import Workspace
from tests.app.conftest import Open
from tests.app.forms import open_form
from tests.app.test_adapter_page import add_loha
from tests.app.test_adapters_page import form_of as bulk_form
from tests.app.test_pages import button, texts
from tests.support.adapters import form_of as form_in
from tests.support.adapters import make_form, write_run_file
from tests.support.sampling import ALL_MODULES, MODULES, add_adapter, add_file


@pytest.fixture
def ink(empty: Workspace) -> Adapter:
    """An adapter that fits the pocket base."""
    return add_adapter(empty, "ink", ALL_MODULES, seed=1)


@pytest.fixture
def went(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Where the pages want to go: a form alone has no pages to go to."""
    told: dict[str, str] = {}
    monkeypatch.setattr(shell, "go", lambda page, **params: told.update(page=page, **params))
    monkeypatch.setattr(shell, "link", lambda page, label, **_: told.update(page=page, label=label))
    return told


def base_form(base_id: str) -> None:
    """What the dialog shows for a base, alone."""
    from registry.records import Base
    from studio.app import shell
    from studio.app.components.bake_dialog import bake_form

    bake_form(base=shell.workspace().catalog.get(Base, base_id))


def extract_form_of(base_id: str) -> None:
    """What the dialog on the page of bases shows, alone."""
    from registry.records import Base
    from studio.app import shell
    from studio.app.components.extract_dialog import extract_form

    extract_form(shell.workspace().catalog.get(Base, base_id), elsewhere=True)


def form(ws: Workspace, function: Any, *args: Any) -> AppTest:
    state.use(ws)
    return AppTest.from_function(function, args=args, default_timeout=60).run()


def changed(base: Base, ws: Workspace, part: str) -> bool:
    """Whether a component of a baked base differs from that of the pocket base."""
    pocket = ws.resolve(ws.catalog.get(Base, "pocket").location)
    one, other = (
        next((folder / part).glob("*.safetensors")) for folder in (pocket, ws.resolve(base.location))
    )
    return one.read_bytes() != other.read_bytes()


def test_an_adapter_is_put_into_its_base_and_the_result_is_among_the_bases(
    empty: Workspace, ink: Adapter, went: dict[str, str]
):
    at = open_form(empty, "bake_dialog", "bake_form", ink)
    assert at.text_input(key=f"bake-name-{empty.catalog.get(Base, 'pocket').id}-1").value == "pocket + ink"
    at.slider(key=f"bake-weight-{ink.id}").set_value(0.5).run()
    at.slider(key=f"bake-blocks-{ink.id}-TE").set_value(0.0).run()
    at.button(key="bake-go").click().run()
    assert not at.exception
    assert not at.error
    made = empty.catalog.get(Base, "pocket + ink")
    assert changed(made, empty, "unet")
    assert not changed(made, empty, "text_encoder")
    assert f"{len(MODULES)} layers changed" in texts(at)
    assert went["page"] == "bases"


def test_adapters_are_put_into_a_base_from_its_own_page(empty: Workspace, ink: Adapter, went: dict[str, str]):
    pocket = empty.catalog.get(Base, "pocket")
    at = form(empty, base_form, pocket.id)
    assert at.button(key="bake-go").disabled
    at.selectbox(key=f"bake-{pocket.family}-0-choice").set_value(ink.id).run()
    at.button(key="bake-add").click().run()
    at.text_input(key=f"bake-name-{pocket.id}-1").set_value("pocket").run()
    assert "exists already" in at.error[0].value
    at.text_input(key=f"bake-name-{pocket.id}-1").set_value("inked").run()
    at.toggle(key="bake-file").set_value(True).run()
    at.button(key="bake-go").click().run()
    assert not at.exception
    assert not at.error
    assert empty.catalog.get(Base, "inked").kind == "file"
    assert (empty.home / "exports" / "inked.safetensors").is_file()


def test_an_adapter_that_does_not_fit_the_base_is_one_line_and_nothing_is_written(
    filled: Workspace, went: dict[str, str]
):
    wide = make_form({"unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q": (32, 32)})
    adapter = add_file(
        filled, "other sides", write_run_file(wide, filled.home / "adapters/other.safetensors")
    )
    at = open_form(filled, "bake_dialog", "bake_form", adapter)
    at.button(key="bake-go").click().run()
    assert not at.exception
    assert "does not fit" in at.error[0].value
    assert not list((filled.home / "exports").iterdir())
    assert {base.name for base in filled.catalog.list(Base)} == {
        "pocket",
        "pocket-xl",
        "pocket-sd35",
        "pocket-flux",
    }


def test_an_adapter_is_taken_out_of_a_base_of_the_list(
    empty: Workspace, ink: Adapter, went: dict[str, str], tmp_path: Path
):
    bake(empty, "pocket", [Use("ink")], tmp_path / "tuned", dtype="fp32", add="inked")
    at = form(empty, extract_form_of, empty.catalog.get(Base, "pocket").id)
    assert at.button(key="extract-go").disabled
    pocket, tuned = empty.catalog.get(Base, "pocket"), empty.catalog.get(Base, "inked")
    at.selectbox(key=f"extract-tuned-{pocket.id}").set_value(tuned.id).run()
    assert at.text_input(key="extract-name-inked").value == "inked extracted"
    at.number_input(key="extract-rank").set_value(4).run()
    at.selectbox(key="extract-dtype").set_value("fp32").run()
    at.button(key="extract-go").click().run()
    assert not at.exception
    assert not at.error
    made = empty.catalog.get(Adapter, "inked extracted")
    assert (made.origin, made.base_id) == ("extract", pocket.id)
    assert went == {"page": "adapters", "adapter": made.id}
    old, new = form_in(empty, ink), form_in(empty, made)
    for name in ALL_MODULES:
        assert np.linalg.norm(new.delta(name) - old.delta(name)) < 1e-3 * np.linalg.norm(old.delta(name))


def test_an_adapter_is_taken_out_of_a_folder_without_its_text_side(
    empty: Workspace, ink: Adapter, went: dict[str, str], tmp_path: Path
):
    bake(empty, "pocket", [Use("ink")], tmp_path / "tuned model", dtype="fp32")
    at = form(empty, extract_form_of, empty.catalog.get(Base, "pocket").id)
    at.text_input(key="extract-place").set_value(str(tmp_path / "nowhere")).run()
    at.button(key="extract-go").click().run()
    assert "nowhere" in at.error[0].value.replace("\\", "")
    assert empty.catalog.count(Adapter) == 1
    at.text_input(key="extract-place").set_value(str(tmp_path / "tuned model")).run()
    at.toggle(key="extract-text").set_value(False).run()
    at.button(key="extract-go").click().run()
    assert not at.exception
    assert empty.catalog.get(Adapter, "tuned model extracted").targets == ("unet",)


def test_the_ways_to_these_dialogs(filled: Workspace, open_page: Open):
    at = open_page(filled, "adapters", add="1")
    button(at, "Take an adapter out").click().run()
    assert at.selectbox(key="extract-base").value == filled.catalog.get(Base, "pocket").id
    at = open_page(filled, "bases")
    pocket = filled.catalog.get(Base, "pocket")
    for chosen, field in (("Put adapters into it", "bake-go"), (at.menu_button[0].options[1], "extract-go")):
        at = open_page(filled, "bases")
        at.menu_button(key=f"more-{pocket.id}").set_value(chosen).run()
        assert not at.exception
        assert at.button(key=field).disabled


def test_a_merge_weighs_parts_of_an_adapter(empty: Workspace, ink: Adapter):
    other = add_adapter(empty, "wash", ALL_MODULES, seed=2)
    at = open_form(empty, "merge_dialog", "merge_form", ink)
    at.selectbox(key=f"merge-{ink.id}-1-choice").set_value(other.id).run()
    at.button(key="merge-add").click().run()
    at.slider(key=f"merge-blocks-{other.id}-MID").set_value(0.0).run()
    at.text_input(key=f"merge-blocks-{other.id}-single").set_value("TE=x").run()
    assert "is not NAME=FACTOR" in texts(at)
    at.text_input(key=f"merge-blocks-{other.id}-single").set_value("TE=0").run()
    assert not at.error
    at.button(key="merge-go").click().run()
    assert not at.exception
    made = form_in(empty, empty.catalog.get(Adapter, "ink + wash"))
    ours, theirs = form_in(empty, ink), form_in(empty, other)
    for name in ALL_MODULES:
        without = "mid_block" in name or name.startswith("text_encoder")
        wanted = ours.delta(name) + (0 if without else theirs.delta(name))
        assert np.allclose(made.delta(name), wanted, atol=1e-5), name


def test_chosen_adapters_are_merged(filled: Workspace, open_page: Open):
    at = open_page(filled, "adapters")
    button(at, "Select").click().run()
    ours = [filled.catalog.get(Adapter, name).id for name in ("neon signs", "ink wash", "blueprint")]
    at.session_state["adapters-chosen"] = ours
    at.run()
    at.button(key="bulk-merge").click().run()
    assert not at.exception
    assert {slider.label for slider in at.slider} >= {"neon signs", "ink wash", "blueprint"}
    at.session_state["adapters-chosen"] = [*ours, filled.catalog.get(Adapter, "lantern glow").id]
    at.run()
    at.button(key="bulk-merge").click().run()
    assert not at.exception
    assert "different base models" in at.error[0].value


def test_several_of_other_methods_are_exported_as_lora(filled: Workspace, open_page: Open):
    open_page(filled, "adapters")
    ids = [add_loha(filled).id, filled.catalog.get(Adapter, "ink wash").id]
    at = form(filled, bulk_form, ids)
    assert "1 of 2 are LoHa" in texts(at)
    at.radio(key="exports-layout").set_value("diffusers").run()
    at.text_input(key="exports-name").set_value("both").run()
    button(at, "Write and check").click().run()
    assert not at.exception
    assert "2 adapters written" in at.success[0].value
    for name in ("twisted", "ink-wash"):
        facts = load_adapter(filled.home / "exports" / "both" / f"{name}.safetensors")[1]
        assert facts.method == "lora"
    at.toggle(key="exports-convert").set_value(False).run()
    button(at, "Write and check").click().run()
    assert "1 adapter written" in at.success[0].value
    assert "twisted" in texts(at)
