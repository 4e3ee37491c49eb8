"""The page of one adapter: state of its file, export, X-ray, and adapters that are made from it."""

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from registry.formats.load import load_adapter
from registry.formats.tensors import save
from registry.hashing import hash_adapter
from registry.records import Adapter, Base, FileState, Job, JobKind
from studio.workspace import Workspace
from tests.app.conftest import Open
from tests.app.forms import open_form
from tests.app.test_pages import button, texts

PART = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def field(at: AppTest, label: str) -> Any:
    return next(element for element in at.text_input if element.label == label)


def add_loha(ws: Workspace) -> Adapter:
    """An adapter of one LoHa on the pocket base, which is 32 wide there."""
    random = np.random.default_rng(3)
    shapes = {"hada_w1_a": (32, 2), "hada_w1_b": (2, 32), "hada_w2_a": (32, 2), "hada_w2_b": (2, 32)}
    tensors = {f"{PART}.{name}": random.normal(size=s).astype(np.float32) for name, s in shapes.items()}
    path = ws.home / "adapters" / "loha.safetensors"
    save(path, tensors | {f"{PART}.alpha": np.array(2, np.float32)}, {})
    hashes = hash_adapter(path)
    return ws.catalog.add(
        Adapter(
            name="twisted", tensor_sha256=hashes.tensor_sha256, file_sha256=hashes.sha256,
            path=ws.relative(path), family="sd15", method="loha", rank=2, alpha=2.0, origin="import",
        )
    )  # fmt: skip


def test_a_missing_file_is_said_looked_for_and_linked_by_hand(
    filled: Workspace, open_page: Open, tmp_path: Path
):
    adapter = filled.catalog.get(Adapter, "ink wash")
    moved = shutil.move(filled.resolve(adapter.path), tmp_path / "moved.safetensors")
    at = open_page(filled, "adapters", adapter=adapter.id)
    assert not at.exception
    assert "The file is not there any more" in texts(at)
    assert str(filled.resolve(adapter.path)) in texts(at)
    assert button(at, "Export").disabled
    button(at, "Look for it").click().run()
    assert filled.catalog.count(Job, kind=JobKind.CHECK) == 1
    other = filled.resolve(filled.catalog.get(Adapter, "blueprint").path)
    for place, wrong in (("", "is empty"), (str(tmp_path / "x"), "x"), (str(other), "its weights differ")):
        field(at, "Where the file is now").set_value(place)
        button(at, "Use this file").click().run()
        assert not at.exception
        assert wrong in at.error[0].value.replace("\\", "")
    field(at, "Where the file is now").set_value(str(moved))
    button(at, "Use this file").click().run()
    assert not at.error
    assert "The file is not there any more" not in texts(at)
    assert filled.resolve(filled.catalog.get(Adapter, adapter.id).path).is_file()


def test_a_changed_file_is_said_and_checked_again(filled: Workspace, open_page: Open):
    adapter = filled.catalog.get(Adapter, "ink wash")
    path = filled.resolve(adapter.path)
    good = path.read_bytes()
    shutil.copy(filled.resolve(filled.catalog.get(Adapter, "blueprint").path), path)
    filled.catalog.update(Adapter, adapter.id, mtime_ns=1)
    at = open_page(filled, "adapters", adapter=adapter.id)
    assert "The file may have changed" in texts(at)
    button(at, "Check the file").click().run()
    assert "Its weights are not those that were registered" in texts(at)
    assert filled.catalog.get(Adapter, adapter.id).file_state is FileState.CHANGED
    path.write_bytes(good)
    button(at, "Check the file").click().run()
    assert not at.exception
    assert "registered" not in texts(at)
    assert filled.catalog.get(Adapter, adapter.id).file_state is FileState.OK


def test_a_listed_file_is_read_on_the_spot(filled: Workspace, open_page: Open):
    adapter = filled.catalog.get(Adapter, "ink wash")
    filled.catalog.update(
        Adapter, adapter.id, tensor_sha256="", file_sha256="", file_state=FileState.NEW, origin="import"
    )
    at = open_page(filled, "adapters", adapter=adapter.id)
    assert "Not read yet" in texts(at)
    button(at, "Read it now").click().run()
    assert not at.exception
    assert filled.catalog.get(Adapter, adapter.id).tensor_sha256 == adapter.tensor_sha256
    assert "Not read yet" not in texts(at)


def test_the_family_says_how_it_was_told_and_is_set_by_hand(filled: Workspace, open_page: Open):
    adapter = filled.catalog.get(Adapter, "ink wash")
    said = {"confidence": "medium", "reason": "its *text* encoder is 768 wide"}
    filled.catalog.update(Adapter, adapter.id, metadata={"identified": said})
    at = open_page(filled, "adapters", adapter=adapter.id)
    assert "Likely: its *text* encoder is 768 wide" in texts(at)
    at.selectbox(key=f"family-{adapter.id}").set_value("sdxl").run()
    button(at, "Set family").click().run()
    assert not at.exception
    changed = filled.catalog.get(Adapter, adapter.id)
    assert (changed.family, changed.metadata["identified"]["reason"]) == ("sdxl", "set by hand")
    filled.catalog.update(Adapter, adapter.id, family="", metadata={})
    at = open_page(filled, "adapters", adapter=adapter.id)
    assert "could not be told" in at.warning[0].value
    assert "X-ray" not in "".join(box.label for box in at.expander)


def test_favourites_are_kept(filled: Workspace, open_page: Open):
    adapter = filled.catalog.get(Adapter, "ink wash")
    at = open_page(filled, "adapters", adapter=adapter.id)
    for wanted in (True, False):
        at.button(key="favourite").click().run()
        assert filled.catalog.get(Adapter, adapter.id).favourite is wanted


def test_trigger_words_are_chips_to_copy(filled: Workspace, open_page: Open):
    adapter = filled.catalog.get(Adapter, "ink wash")
    filled.catalog.update(Adapter, adapter.id, trigger_words=("*ink*", "wet paper"))
    at = open_page(filled, "adapters", adapter=adapter.id)
    assert [code.value for code in at.code][:2] == ["*ink*", "wet paper"]


def test_export_shows_what_every_program_makes_of_it(filled: Workspace, open_page: Open):
    adapter = filled.catalog.get(Adapter, "neon signs")
    at = open_form(filled, "export_dialog", "export_form", adapter)
    at.radio(key="export-layout").set_value("diffusers").run()
    button(at, "Write and check").click().run()
    assert not at.exception
    rows = {row["Program"]: row for _, row in at.table[0].value.iterrows()}
    assert rows["diffusers"]["Loads it"] == "yes"
    assert rows["A1111"]["Loads it"] == "no"
    assert "A1111, InvokeAI, kohya sd-scripts: reads kohya names only" in texts(at)
    whole = adapter_modules(filled, adapter)
    assert rows["diffusers"]["Parts"] == f"{whole} of {whole}"
    assert any("will not find" in box.label for box in at.expander)
    assert (filled.home / "exports" / "neon-signs.safetensors").is_file()
    page = open_page(filled, "adapters", adapter=adapter.id)
    assert not page.exception
    assert "Exported: 1 file" in [box.label for box in page.expander]
    assert {"diffusers", "A1111"} <= set(page.table[1].value["Program"])


def adapter_modules(ws: Workspace, adapter: Adapter) -> int:
    return len(load_adapter(ws.resolve(adapter.path), "sd15")[0].everything)


def test_export_of_another_method_makes_a_lora_of_it(filled: Workspace, open_page: Open):
    adapter = add_loha(filled)
    at = open_form(filled, "export_dialog", "export_form", adapter)
    at.radio(key="export-layout").set_value("diffusers").run()
    at.selectbox(key="export-error").set_value(0.0).run()
    at.number_input(key="export-rank").set_value(4).run()
    button(at, "Write and check").click().run()
    assert not at.exception
    assert not at.error
    form, facts, _ = load_adapter(filled.home / "exports" / "twisted.safetensors")
    assert (facts.method, form.modules[next(iter(form.modules))].rank) == ("lora", 4)
    at.toggle(key="export-convert").set_value(False).run()
    button(at, "Write and check").click().run()
    assert not at.exception
    assert "diffusers" in at.error[0].value


def test_a_dora_asks_for_its_base(filled: Workspace):
    adapter = add_loha(filled)
    filled.catalog.update(Adapter, adapter.id, method="dora")
    pocket = filled.catalog.get(Base, "pocket")
    at = open_form(filled, "export_dialog", "export_form", filled.catalog.get(Adapter, adapter.id))
    assert at.selectbox(key="export-base").options == [pocket.name]
    assert at.selectbox(key="export-base").value is None
    filled.catalog.update(Adapter, adapter.id, base_id=pocket.id)
    at = open_form(filled, "export_dialog", "export_form", filled.catalog.get(Adapter, adapter.id))
    assert at.selectbox(key="export-base").value == pocket.id


def until(at: AppTest, words: str) -> None:
    """Run the page until it says something that is computed beside it."""
    deadline = time.monotonic() + 60
    while words not in texts(at) and time.monotonic() < deadline:
        at.run()
        assert not at.exception
    assert words in texts(at)


def test_an_x_ray_is_made_when_asked_and_kept(filled: Workspace, open_page: Open):
    adapter = filled.catalog.get(Adapter, "neon signs")
    at = open_page(filled, "adapters", adapter=adapter.id)
    assert not at.get("echarts_chart")
    button(at, "Look inside").click().run()
    until(at, "How much of the change lies in each block")
    assert {metric.label for metric in at.metric} >= {"Size of the change", "Capacity used"}
    assert len(list((filled.home / "cache" / "xrays").iterdir())) == 1
    again = open_page(filled, "adapters", adapter=adapter.id)
    assert "How much of the change lies in each block" in texts(again)
    other = filled.catalog.get(Adapter, "blueprint").id
    again.selectbox(key=f"alike-{adapter.id}-choice").set_value(other).run()
    until(again, "unrelated")


def test_an_x_ray_that_fails_says_why_in_one_line(filled: Workspace, open_page: Open):
    adapter = filled.catalog.get(Adapter, "neon signs")
    path = filled.resolve(adapter.path)
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    at = open_page(filled, "adapters", adapter=adapter.id)
    button(at, "Look inside").click().run()
    until(at, "Try again")
    assert "has changed" in at.error[0].value


def test_a_smaller_one_is_made_and_says_how_far_it_is_off(filled: Workspace, open_page: Open):
    adapter = filled.catalog.get(Adapter, "neon signs")
    at = open_form(filled, "resize_dialog", "resize_form", adapter)
    at.number_input(key="resize-rank").set_value(2).run()
    at.text_input(key="resize-name").set_value("ink wash").run()
    assert "exists already" in at.error[0].value
    assert at.button(key="resize-go").disabled
    at.text_input(key="resize-name").set_value("neon small").run()
    at.button(key="resize-go").click().run()
    assert not at.exception
    made = filled.catalog.get(Adapter, "neon small")
    assert (made.rank, made.origin, made.parents) == (2, "resize", (adapter.id,))
    assert made.id in at.query_params["adapter"]
    error = made.metadata["made"]["report"]["total_error"]
    page = open_page(filled, "adapters", adapter=made.id)
    assert f"Resized: off by {error:.1%} of the change" in texts(page)


@pytest.mark.parametrize("way", ["share", "sum", "ratio"])
def test_ranks_by_a_rule(filled: Workspace, open_page: Open, way: str):
    adapter = filled.catalog.get(Adapter, "neon signs")
    at = open_form(filled, "resize_dialog", "resize_form", adapter)
    at.radio(key="resize-way").set_value(way).run()
    at.slider(key=f"resize-{way}").set_value({"share": 60, "sum": 50, "ratio": 2}[way]).run()
    at.button(key="resize-go").click().run()
    assert not at.exception
    made = filled.catalog.get(Adapter, "neon signs small")
    assert made.rank < 8
    rule = {"share": ("sv_fro", 0.6), "sum": ("sv_cumulative", 0.5), "ratio": ("sv_ratio", 2)}[way]
    assert made.metadata["made"]["settings"][rule[0]] == rule[1]


def test_what_dare_leaves_out_is_chosen_by_a_seed(filled: Workspace, open_page: Open):
    adapter, other = (filled.catalog.get(Adapter, name) for name in ("neon signs", "blueprint"))
    at = open_form(filled, "merge_dialog", "merge_form", adapter)
    at.selectbox(key=f"merge-{adapter.id}-1-choice").set_value(other.id).run()
    at.button(key="merge-add").click().run()
    at.radio(key="merge-way").set_value("dare").run()
    at.number_input(key="merge-seed").set_value(7).run()
    at.button(key="merge-go").click().run()
    assert not at.exception
    made = filled.catalog.get(Adapter, "neon signs + blueprint").metadata["made"]
    assert (made["settings"]["method"], made["settings"]["seed"]) == ("dare", 7)


def test_adapters_are_merged_with_weights(filled: Workspace, open_page: Open):
    adapter, other = (filled.catalog.get(Adapter, name) for name in ("neon signs", "blueprint"))
    at = open_form(filled, "merge_dialog", "merge_form", adapter)
    assert at.button(key="merge-go").disabled
    picker = at.selectbox(key=f"merge-{adapter.id}-1-choice")
    assert "lantern glow" not in picker.options  # another family
    picker.set_value(other.id).run()
    at.button(key="merge-add").click().run()
    at.slider(key=f"merge-weight-{other.id}").set_value(0.5).run()
    at.button(key="merge-go").click().run()
    assert not at.exception
    made = filled.catalog.get(Adapter, "neon signs + blueprint")
    assert (made.rank, made.origin) == (16, "merge")
    assert [parent["weight"] for parent in made.metadata["made"]["parents"]] == [1.0, 0.5]


def test_what_was_added_to_a_merge_can_be_left_out(filled: Workspace, open_page: Open):
    adapter, other = (filled.catalog.get(Adapter, name) for name in ("neon signs", "blueprint"))
    at = open_form(filled, "merge_dialog", "merge_form", adapter)
    at.selectbox(key=f"merge-{adapter.id}-1-choice").set_value(other.id).run()
    at.button(key="merge-add").click().run()
    at.radio(key="merge-way").set_value("ties").run()
    assert at.number_input(key="merge-rank").value == 8
    at.button(key=f"merge-drop-{other.id}").click().run()
    assert not at.exception
    assert at.button(key="merge-go").disabled


def test_what_the_file_says_is_edited_and_its_weights_stay(filled: Workspace, open_page: Open):
    adapter = filled.catalog.get(Adapter, "neon signs")
    at = open_form(filled, "edit_dialog", "edit_form", adapter)
    button(at, "Write it").click().run()
    assert "change one of them" in at.error[0].value
    at.text_input(key="edit-title").set_value("Neon *signs*")
    at.text_input(key="edit-words").set_value("neonsign, glow")
    button(at, "Write it").click().run()
    assert not at.exception
    assert not at.error
    changed = filled.catalog.get(Adapter, adapter.id)
    assert changed.tensor_sha256 == adapter.tensor_sha256
    assert changed.trigger_words == ("neonsign", "glow")
    said = load_adapter(filled.resolve(changed.path), "sd15")[2].metadata
    assert said["modelspec.title"] == "Neon *signs*"


@pytest.mark.parametrize("change", ["Make it smaller", "Merge with others", "Edit what the file says"])
def test_the_menu_opens_its_dialogs(filled: Workspace, open_page: Open, change: str):
    at = open_page(filled, "adapters", adapter=filled.catalog.get(Adapter, "neon signs").id)
    at.menu_button(key="adapter-change").set_value(change).run()
    assert not at.exception
    fields = {"resize-name", "merge-name-1", "edit-title"}
    assert fields & {str(element.key) for element in at.text_input}
