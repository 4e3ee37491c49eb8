"""Mixes of adapters as files: what they say, how their adapters are found again."""

import json
from pathlib import Path
from typing import Any

import pytest

from registry.errors import BadInput, NotFound
from registry.records import Adapter, Base
from studio.cli import run
from studio.sampling.mixes import mix_text, read_mix, read_mix_file
from studio.sampling.request import AdapterChoice
from studio.workspace import Workspace
from tests.support.sampling import add_adapter


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    ws = Workspace.open(tmp_path_factory.mktemp("mixes") / "home")
    add_adapter(ws, "ink", seed=1)
    add_adapter(ws, "cat", seed=2)
    return ws


def text_of(ws: Workspace, **first: Any) -> str:
    """A mix of both."""
    ink, cat = (ws.catalog.get(Adapter, name) for name in ("ink", "cat"))
    choices = [
        AdapterChoice(id=ink.id, weight=0.8, text_weight=0.5, blocks={"MID": 0.5}, schedule=((0, 0), (1, 1))),
        AdapterChoice(id=cat.id, weight=-0.3),
    ]
    value = json.loads(mix_text(ws, ws.catalog.get(Base, "pocket"), choices))
    value["adapters"][0] |= first
    return json.dumps(value)


def test_it_says_names_and_hashes_and_no_ids(ws: Workspace):
    value = json.loads(text_of(ws))
    assert (value["kind"], value["family"], value["base"]) == ("lora_studio.mix", "sd15", "pocket")
    ink = ws.catalog.get(Adapter, "ink")
    assert value["adapters"][0]["tensor_sha256"] == ink.tensor_sha256
    assert ink.id not in text_of(ws)


def test_it_is_the_same_mix_again(ws: Workspace):
    first, second = read_mix(ws, text_of(ws), "mix.json", "sd15")
    assert first.id == ws.catalog.get(Adapter, "ink").id
    assert (first.weight, first.text_weight, first.blocks) == (0.8, 0.5, {"MID": 0.5})
    assert first.schedule == ((0, 0), (1, 1))
    assert (second.weight, second.text_weight) == (-0.3, None)


def test_weights_count_more_than_names(ws: Workspace):
    hash_of_cat = ws.catalog.get(Adapter, "cat").tensor_sha256
    first, _ = read_mix(ws, text_of(ws, name="renamed", tensor_sha256=hash_of_cat), "mix.json")
    assert first.id == ws.catalog.get(Adapter, "cat").id


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"tensor_sha256": "0" * 64}, BadInput, "has other weights"),
        ({"name": "nobody", "tensor_sha256": ""}, NotFound, "nobody"),
        ({"weight": 40}, BadInput, r"mix.json: is not a mix of adapters \(adapters.0.weight"),
        ({"tensor_sha256": "x"}, BadInput, "tensor_sha256"),
    ],
)
def test_others_are_never_taken_in_silence(ws: Workspace, change: dict[str, Any], error: type, says: str):
    with pytest.raises(error, match=says):
        read_mix(ws, text_of(ws, **change), "mix.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"kind": "x", "adapters": []}', "[" * 100_000])
def test_what_is_no_mix_is_one_line(ws: Workspace, text: str):
    with pytest.raises(BadInput, match=r"^mix.json: is not a mix of adapters \("):
        read_mix(ws, text, "mix.json")


def test_a_mix_of_another_family_is_refused(ws: Workspace):
    with pytest.raises(BadInput, match="is a mix for sd15, the base is sdxl"):
        read_mix(ws, text_of(ws), "mix.json", "sdxl")


@pytest.mark.parametrize("data", [b"\xff", b" " * 2**21])
def test_a_file_that_is_none(ws: Workspace, tmp_path: Path, data: bytes):
    (tmp_path / "mix.json").write_bytes(data)
    with pytest.raises(BadInput, match="is not a mix of adapters"):
        read_mix_file(ws, tmp_path / "mix.json")
    with pytest.raises(BadInput, match="cannot be read"):
        read_mix_file(ws, tmp_path / "nothing.json")


def test_on_the_command_line(ws: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    mix, out = tmp_path / "mix.json", tmp_path / "out"
    common = ["--home", str(ws.home), "--json", "sample", "--prompt", "a red circle", "--steps", "2"]
    own = ["--adapter", "ink:0.8", "--adapter", "cat:0.2", "--save-mix", str(mix)]
    assert run([*common, *own, "--out", str(out)]) == 0
    first = json.loads(capsys.readouterr().out)
    assert run([*common, "--mix", str(mix), "--format", "webp", "--out", str(out)]) == 0
    second = json.loads(capsys.readouterr().out)
    assert second["request"]["adapters"] == first["request"]["adapters"]
    assert second["files"][0].endswith(".webp")
