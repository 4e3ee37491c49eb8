"""Bases that adapters are baked into, and headers that are edited, in a workspace."""

import numpy as np
import pytest
from PIL import Image as Pixels
from safetensors.numpy import load_file

from registry.errors import BadInput, NotFound
from registry.formats.header import read_header
from registry.formats.operations.edit import Edit
from registry.formats.operations.ranks import RankRule
from registry.hashing import hash_adapter
from registry.records import Adapter, Base
from studio.adapters import verify
from studio.operations import Use, bake, edit, extract
from studio.provenance import made_from, origin_of
from tests.support.adapters import files, form_of, make_form, write_run_file
from tests.support.sampling import ALL_MODULES, MODULES, add_adapter, add_file, task


def test_baked_and_extracted_again(ws, ink, tmp_path):
    baked = bake(ws, "pocket", [Use("ink", 0.8)], tmp_path / "tuned", dtype="fp32", add="pocket ink")
    assert baked.base == ws.catalog.get(Base, "pocket ink")
    assert baked.report.modules == len(ALL_MODULES)
    by_name = extract(ws, "pocket", "pocket ink", RankRule(4), name="back", dtype="fp32")
    old, form = form_of(ws, ink), form_of(ws, by_name.adapter)
    assert form.modules.keys() == old.modules.keys()
    for name in ALL_MODULES:
        wanted = 0.8 * old.delta(name)
        assert np.linalg.norm(form.delta(name) - wanted) < 1e-4 * np.linalg.norm(wanted), name
    assert by_name.adapter.base_id == ws.catalog.get(Base, "pocket").id
    assert by_name.adapter.metadata["made"]["base"]["name"] == "pocket"
    alone = extract(
        ws, "pocket", tmp_path / "tuned", RankRule(4), name="unet", components=["unet"], convolutions=False
    )
    assert alone.adapter.targets == ("unet",)
    assert set(form_of(ws, alone.adapter).modules) == {name for name in MODULES if "conv" not in name}
    with pytest.raises(BadInput, match="component 'vae': is not in the base"):
        extract(ws, "pocket", "pocket ink", RankRule(4), name="x", components=["vae"])
    with pytest.raises(NotFound):
        extract(ws, "pocket", tmp_path / "nowhere", RankRule(4), name="x")
    with pytest.raises(BadInput, match="base 'pocket ink': exists already"):
        bake(ws, "pocket", [Use("ink")], tmp_path / "more", add="pocket ink")
    assert not (tmp_path / "more").exists()


def test_a_baked_single_file_can_be_a_base(ws, tiny_sdxl, tmp_path):
    from registry.formats.operations.sources import BaseWeights
    from studio.bases import add_base
    from tests.support.checkpoints import save_sdxl

    file = save_sdxl(tiny_sdxl, tmp_path / "toy.safetensors")
    add_base(ws, "toy", str(file), config=str(tiny_sdxl))
    shapes = {
        name: BaseWeights(tiny_sdxl, "sdxl").shape(name)
        for name in ("unet.conv_in", "unet.time_embedding.linear_1")
    }
    file = write_run_file(make_form(shapes, family="sdxl"), ws.home / "adapters/x.safetensors")
    add_file(ws, "x", file, family="sdxl")
    baked = bake(ws, "toy", [Use("x")], tmp_path / "toy-x.safetensors", add="toy x")
    assert (baked.base.kind, baked.base.family) == ("file", "sdxl")
    again = bake(ws, "toy x", [Use("x", -1)], tmp_path / "toy-again.safetensors")
    assert again.report.modules == 2
    wanted = BaseWeights(tiny_sdxl, "sdxl").read("unet.conv_in")
    got = BaseWeights(tmp_path / "toy-again.safetensors", "sdxl").read("unet.conv_in")
    assert np.allclose(got, wanted, atol=1e-6)


def test_editing_changes_the_header_alone(ws, ink, tmp_path):
    path = ws.resolve(ink.path)
    before, weights = path.read_bytes(), load_file(path)
    Pixels.new("RGB", (600, 300), (200, 10, 10)).save(tmp_path / "face.png")
    record = edit(
        ws, "ink",
        Edit(
            title="Ink ü", trigger_words=["ohwx", "ohwx"], licence="MIT", description="lines", author="Ann",
            thumbnail=tmp_path / "face.png", values={"ss_comment": "mine"}, remove=["format"],
        ),
    )  # fmt: skip
    metadata = read_header(path).metadata
    assert (metadata["modelspec.title"], metadata["modelspec.license"]) == ("Ink ü", "MIT")
    assert (metadata["modelspec.author"], metadata["ss_comment"]) == ("Ann", "mine")
    assert metadata["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")
    assert "format" not in metadata
    assert (record.trigger_words, record.licence) == (("ohwx",), "MIT")
    hashes = hash_adapter(path)
    assert hashes.tensor_sha256 == ink.tensor_sha256 == record.tensor_sha256
    assert hashes.sha256 == record.file_sha256 != ink.file_sha256
    data = len(before) - 8 - int.from_bytes(before[:8], "little")
    assert path.read_bytes()[-data:] == before[-data:]
    again = load_file(path)
    assert all(np.array_equal(weights[name], again[name]) for name in weights)
    assert verify(ws, "ink").state == "ok"
    assert edit(ws, "ink", Edit(licence="")).licence == ""
    assert "modelspec.license" not in read_header(path).metadata


def test_edits_that_cannot_be_made_change_nothing(ws, ink, tmp_path):
    path = ws.resolve(ink.path)
    before = path.read_bytes()
    (tmp_path / "no.png").write_text("no picture")
    for changes, wrong in (
        (Edit(), "changes nothing"),
        (Edit(remove=["nothing"]), "'nothing': is not in the file"),
        (Edit(values={"": "x"}), "is no name for a value"),
        (Edit(values={"a\nb": "x"}), "is no name for a value"),
        (Edit(values={"a": "x" * (2**20 + 1)}), "the limit is"),
        (Edit(values={"a": "\ud800"}), "is not text"),
        (Edit(values={f"k{n}": "x" * 2**20 for n in range(9)}), "would get a header of"),
        (Edit(thumbnail=tmp_path / "no.png"), "is no picture"),
        (Edit(thumbnail=tmp_path / "gone.png"), "does not exist"),
    ):
        with pytest.raises(BadInput, match=wrong):
            edit(ws, "ink", changes)
        assert path.read_bytes() == before
    assert files(ws) == ["ink.safetensors"]
    assert ws.catalog.get(Adapter, "ink") == ink


def test_files_elsewhere_are_changed_only_when_asked(ws, tmp_path):
    outside = write_run_file(make_form(seed=3), tmp_path / "mine.safetensors")
    add_file(ws, "mine", outside)
    link = ws.home / "adapters/link.safetensors"
    link.symlink_to(write_run_file(make_form(seed=4), tmp_path / "linked.safetensors"))
    add_file(ws, "linked", link)
    for name in ("mine", "linked"):
        with pytest.raises(BadInput, match="lies outside the workspace"):
            edit(ws, name, Edit(title="x"))
        edit(ws, name, Edit(title="x"), in_place=True)
    assert link.is_symlink()
    assert read_header(tmp_path / "linked.safetensors").metadata["modelspec.title"] == "x"
    assert verify(ws, "linked").state == "ok"


def test_a_baked_base_draws_as_the_base_with_the_adapter(ws, ink, wash, tmp_path):
    from studio.sampling.engine import Engine

    engine = Engine(device="cpu")

    def draw(wanted):
        pictures = []
        engine.draw(wanted, keep=lambda _i, picture, _s: pictures.append(np.asarray(picture, np.int16)))
        return pictures[0]

    wanted = draw(task(ws, (ink, 6.0, 6.0), (wash, 3.0, 0.0)))
    baked = bake(
        ws, "pocket", [Use("ink", 6.0), Use("wash", 3.0, 0.0)], tmp_path / "tuned", dtype="fp32", add="tuned"
    )
    record = ws.catalog.get(Base, "tuned")
    own = draw(task_of(ws, record))
    assert np.abs(own - wanted).max() <= 1
    assert np.abs(draw(task(ws)) - wanted).max() > 20
    assert baked.report.notes == ()


def test_a_baked_base_knows_what_is_in_it(ws, ink, wash, tmp_path):
    """The lineage of a base: shown, told on by an adapter that was trained on it, and outliving the rows."""
    pocket = ws.catalog.get(Base, "pocket")
    use = Use("ink", 0.8, 0.2, "MID=0.5")
    record = bake(ws, "pocket", [use, Use("wash")], tmp_path / "one", add="one").base
    assert made_from(record) == "pocket + ink x 0.8 + wash x 1"
    first, one, two = record.made["parents"]
    assert first == {"id": pocket.id, "name": "pocket", "weight_hash": pocket.weight_hash}
    assert one == {"id": ink.id, "name": "ink", "tensor_sha256": ink.tensor_sha256, "weight": 0.8}
    assert two["tensor_sha256"] == wash.tensor_sha256
    assert record.made["settings"]["strengths"][0]["blocks"][0]["name"] == "MID"
    again = bake(ws, "one", [Use("wash", -1)], tmp_path / "two", add="two").base
    trained = ws.catalog.update(Adapter, add_adapter(ws, "on two", seed=9).id, base_id=again.id)
    story = origin_of(ws, trained)["base"]
    assert (story["name"], story["made"]["operation"]) == ("two", "bake")
    inner = story["parents"][0]
    assert [parent["name"] for parent in inner["parents"]] == ["pocket", "ink", "wash"]
    assert inner["parents"][1]["weight"] == 0.8
    assert story["parents"][1]["repeated"]
    ws.catalog.delete(Adapter, ink.id)
    gone = origin_of(ws, trained)["base"]["parents"][0]["parents"][1]
    assert (gone["name"], gone["gone"]) == ("ink", True)


def task_of(ws, base):
    """A plain request to another base than the pocket one."""
    from dataclasses import fields, replace

    from studio.sampling.task import TaskBase

    plain = task(ws)
    values = {field.name: getattr(base, field.name) for field in fields(TaskBase)}
    return replace(plain, base=TaskBase(**values)).resolved(ws.resolve)
