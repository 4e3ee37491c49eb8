"""What other tools wrote beside an adapter."""

import json

import pytest

from registry.records import Adapter
from studio.imports import text
from studio.imports.sidecars import MAX_BYTES, Sidecar, read_sidecars
from studio.workspace import Workspace
from tests.support.imports import take_in, write_adapter

CIVITAI = {
    "id": 11, "modelId": 7, "name": "v2.0", "baseModel": "SD 1.5", "trainedWords": ["ink, wash", "brush"],
    "description": "<p>Use at <b>0.8</b></p>",
    "model": {"name": "Ink", "tags": ["style", "ink"], "allowCommercialUse": ["Image", "Rent"],
              "allowDerivatives": False, "allowNoCredit": True},
}  # fmt: skip


def write(folder, ending, value):
    (folder / f"x{ending}").write_text(value if isinstance(value, str) else json.dumps(value))


def test_a1111(tmp_path):
    write(tmp_path, ".json", {
        "activation text": "ink, wash", "preferred weight": 0.7, "negative text": "blurry",
        "notes": "soft", "description": "an ink style", "sd version": "SD1",
    })  # fmt: skip
    found = read_sidecars(tmp_path / "x.safetensors")
    assert found == Sidecar(
        trigger_words=("ink", "wash"), weight=0.7, note="an ink style\nsoft\nNegative: blurry",
        base_name="SD1", kinds=(".json",),
    )  # fmt: skip


def test_a1111_writes_0_for_a_weight_that_was_not_set(tmp_path):
    write(tmp_path, ".json", {"preferred weight": 0, "activation text": ""})
    assert read_sidecars(tmp_path / "x.safetensors").weight is None


def test_invokeai(tmp_path):
    write(tmp_path, ".json", {
        "name": "Ink", "trigger_phrases": ["ink", "wash"], "description": "d",
        "default_settings": {"weight": 0.6},
    })  # fmt: skip
    found = read_sidecars(tmp_path / "x.safetensors")
    assert (found.name, found.trigger_words, found.weight, found.note) == ("Ink", ("ink", "wash"), 0.6, "d")


def test_civitai_info(tmp_path):
    write(tmp_path, ".civitai.info", CIVITAI)
    found = read_sidecars(tmp_path / "x.safetensors")
    assert (found.name, found.trigger_words) == ("Ink v2.0", ("ink", "wash", "brush"))
    assert (found.note, found.tags, found.base_name) == ("Use at 0.8", ("style", "ink"), "SD 1.5")
    assert found.source == "https://civitai.com/models/7"
    assert found.licence == (
        "Civitai: commercial use: Image, Rent; derivatives: not allowed; use without credit: allowed"
    )


def test_lora_manager_and_what_a_person_set_there(tmp_path):
    write(tmp_path, ".metadata.json", {
        "model_name": "My ink", "base_model": "SDXL 1.0", "notes": "mine", "tags": ["own"],
        "usage_tips": '{"strength": 0.9}', "civitai": CIVITAI,
    })  # fmt: skip
    found = read_sidecars(tmp_path / "x.safetensors")
    assert (found.name, found.weight, found.note, found.base_name) == ("My ink", 0.9, "mine", "SDXL 1.0")
    assert found.tags == ("own", "style", "ink")
    assert found.trigger_words == ("ink", "wash", "brush")


def test_the_nearest_to_the_person_counts_first(tmp_path):
    write(tmp_path, ".json", {"activation text": "mine", "notes": "my note"})
    write(tmp_path, ".civitai.info", CIVITAI)
    found = read_sidecars(tmp_path / "x.safetensors")
    assert found.trigger_words == ("mine", "ink", "wash", "brush")
    assert found.note == "my note"
    assert found.kinds == (".json", ".civitai.info")


@pytest.mark.parametrize(
    "value",
    ["", "{", "[1]", "7", "[" * 100_000, '{"activation text": [1, {"a": 2}], "preferred weight": "x"}',
     '{"preferred weight": NaN, "default_settings": 3, "activation text": 5, "notes": {}}',
     '{"preferred weight": 1e999, "trigger_phrases": "a,b"}'],
)  # fmt: skip
@pytest.mark.parametrize("ending", [".json", ".metadata.json", ".civitai.info"])
def test_a_damaged_sidecar_costs_nothing(tmp_path, ending, value):
    write_adapter(tmp_path / "x.safetensors")
    write(tmp_path, ending, value)
    found = read_sidecars(tmp_path / "x.safetensors")
    assert found.weight is None
    assert len(found.wrong) == (0 if value.startswith("{") and len(value) > 1 else 1)
    assert all(line.startswith(str(tmp_path)) and "\n" not in line for line in found.wrong)


def test_a_damaged_sidecar_is_a_note_in_the_report(tmp_path):
    ws = Workspace.open(tmp_path / "home")
    file = write_adapter(tmp_path / "in" / "x.safetensors")
    write(tmp_path / "in", ".json", "{")
    report = take_in(ws, file)
    assert report.listed == 1
    assert "x.json: is not JSON" in report.notes[0][1]


def test_a_huge_sidecar_is_left_out(tmp_path):
    write(tmp_path, ".json", " " * (MAX_BYTES + 1))
    assert "more than 4 MiB" in read_sidecars(tmp_path / "x.safetensors").wrong[0]


def test_text_is_bounded_and_harmless():
    assert text.note("a\x1b[31m\u202eb\n\n\n\n\nc") == "a [31m b\n\nc"
    assert len(text.note("x" * 100_000)) == text.LONGEST_NOTE
    assert len(text.words(["w" + str(n) for n in range(1000)])) == text.MOST_WORDS
    assert text.line("x" * 1000) == "x" * text.LONGEST_WORD
    assert text.note("<script>alert(1)</script><p>one<br>two &amp; three") == "alert(1)\none\ntwo & three"
    assert text.title("..") == ""
    assert text.title("a/b\\c\u202e") == "a b c"
    assert text.title("Foreign <b>x</b>\x1b[31m/y") == "Foreign x [31m y"
    assert text.title("<script></script>") == ""
    assert text.title("a <3 b > c") == "a <3 b > c"
    assert text.title("NUL") == "_NUL"
    assert len(text.title("x" * 300)) == 100


def test_the_row_has_what_the_sidecar_says(tmp_path):
    ws = Workspace.open(tmp_path / "home")
    write_adapter(tmp_path / "in" / "x.safetensors")
    write(tmp_path / "in", ".civitai.info", CIVITAI)
    take_in(ws, tmp_path / "in")
    row = ws.catalog.get(Adapter, "Ink v2.0")
    assert row.source == "https://civitai.com/models/7"
    assert row.metadata["import"]["sidecars"] == [".civitai.info"]
    assert row.metadata["base_name"] == "SD 1.5"
