"""A picture's way to samples, and an adapter's way back to pictures, whatever becomes of the data set."""

import json
import shutil

import pytest

from registry.errors import BadInput, NotFound
from registry.records import Adapter, Base, Dataset, Image, Run, RunState
from studio.adapters import register_run_adapter
from studio.datasets.ingest import remove_images, set_captions
from studio.notes import LONGEST, set_note
from studio.provenance import inherited, origin_of, uses_of_picture
from studio.runs.frozen import fill_run_images
from tests.support.pictures import encoded, hash_of, pixels
from tests.support.provenance import (
    CAPTIONS,
    add_made,
    add_sample,
    make_adapter,
    make_dataset,
    make_run,
    picture,
)  # fmt: skip


@pytest.fixture
def ws(chained):
    return chained


@pytest.fixture
def herons(ws):
    return ws.catalog.get(Dataset, "herons")


@pytest.fixture
def heron(tmp_path):
    file = tmp_path / "heron.png"
    file.write_bytes(picture(0))
    return file


def names(records):
    return sorted(record.name for record in records)


def test_a_picture_leads_to_everything_that_holds_it(ws, heron):
    found = uses_of_picture(ws, heron)
    assert found.pixel_hash == hash_of(pixels(0, 64, 64))
    assert (names(found.datasets), names(found.runs)) == (["herons"], ["ink"])
    assert names(found.adapters) == ["half", "ink", "small"]
    assert [sample.request["prompt"] for sample in found.samples] == ["a heron at dusk"]
    assert (found.unknown, found.unknown_line) == (0, "")
    told = json.loads(json.dumps(found.to_dict()))
    assert {a["name"]: a["origin"] for a in told["adapters"]} == {
        "ink": "run", "half": "merge", "small": "resize",
    }  # fmt: skip


def test_the_same_pixels_in_another_file_are_the_same_picture(ws, tmp_path):
    other = tmp_path / "copy.webp"
    other.write_bytes(encoded(pixels(0, 64, 64), "WEBP", lossless=True))
    assert names(uses_of_picture(ws, other).runs) == ["ink"]


def test_a_picture_that_is_nowhere_is_no_error(ws, tmp_path):
    other = tmp_path / "other.png"
    other.write_bytes(picture(9))
    found = uses_of_picture(ws, other)
    assert (found.datasets, found.runs, found.adapters, found.samples) == ((), (), (), ())


def test_the_beginning_of_either_hash_names_a_picture(ws, herons):
    image = ws.catalog.list(Image, dataset_id=herons.id)[1]
    for key in (image.pixel_hash, image.pixel_hash[:10], image.blob[:10]):
        found = uses_of_picture(ws, key)
        assert (found.pixel_hash, found.name) == (image.pixel_hash, "1.png")
    with pytest.raises(NotFound, match="begins the hash of no picture here"):
        uses_of_picture(ws, "0" * 40)
    for no_hash in ("abc", "no such file", "x" * 5000, "a\0b"):
        with pytest.raises(NotFound, match="is no file"):
            uses_of_picture(ws, no_hash)


def test_digits_that_fit_several_pictures_are_refused(ws):
    twins = [Image(blob="c" * 64, pixel_hash=f"abcd{n}", name=f"{n}.png", width=8, height=8) for n in (1, 2)]
    ws.catalog.add_dataset(Dataset(name="twins"), twins)
    with pytest.raises(BadInput, match=r"fits several \(abcd1 \(1\.png\), abcd2 \(2\.png\)\)"):
        uses_of_picture(ws, "abcd")


def test_what_is_no_picture_is_refused(ws, tmp_path):
    (tmp_path / "x.png").write_bytes(b"hello")
    with pytest.raises(BadInput, match=r"x\.png: is text, not a picture"):
        uses_of_picture(ws, tmp_path / "x.png")
    with pytest.raises(BadInput, match="is not a plain file"):
        uses_of_picture(ws, tmp_path)


def test_what_becomes_of_the_data_set_changes_nothing_that_a_run_saw(ws, herons, heron):
    images = ws.catalog.list(Image, dataset_id=herons.id)
    adapter = ws.catalog.get(Adapter, "ink")
    before = origin_of(ws, adapter)["run"]["pictures"]
    assert [p["caption"] for p in before] == list(CAPTIONS)
    set_captions(ws, herons, {images[1].id: "something else"})
    remove_images(ws, ws.catalog.get(Dataset, herons.id), [images[0].id])
    after = uses_of_picture(ws, heron)
    assert (after.datasets, names(after.runs)) == ((), ["ink"])
    assert names(after.adapters) == ["half", "ink", "small"]
    assert origin_of(ws, adapter)["run"]["pictures"] == before
    assert origin_of(ws, adapter)["run"]["dataset"]["state"] == "changed"
    ws.catalog.delete(Dataset, herons.id)
    assert names(uses_of_picture(ws, heron).adapters) == ["half", "ink", "small"]
    story = origin_of(ws, adapter)["run"]
    assert (story["pictures"], story["dataset"]["state"]) == (before, "gone")


def test_runs_of_older_versions_are_filled_in_from_their_directory(ws, heron):
    run = ws.catalog.get(Run, "ink")
    with ws.catalog._write() as session:
        session.connection().exec_driver_sql("DELETE FROM run_images")
    assert ws.catalog.lineage.runs_without_images() == [run.id]
    assert fill_run_images(ws) == 1
    assert [image.name for image in ws.catalog.lineage.run_images(run.id)] == ["0.png", "1.png", "2.png"]
    assert fill_run_images(ws) == 0
    assert names(uses_of_picture(ws, heron).runs) == ["ink"]


def test_a_run_without_its_list_makes_its_adapters_doubtful(ws, heron):
    run = ws.catalog.get(Run, "ink")
    shutil.rmtree(ws.run_dir(run.id).path)
    with ws.catalog._write() as session:
        session.connection().exec_driver_sql("DELETE FROM run_images")
    found = uses_of_picture(ws, heron)
    assert (found.runs, found.adapters) == ((), ())
    assert found.unknown_line == (
        "3 more adapters may hold it as well: what they were trained on is not known here."
    )


def test_imported_adapters_are_said_to_be_unknown_in_one_line(ws, heron):
    foreign = ws.catalog.add(
        Adapter(name="foreign", tensor_sha256="t9", file_sha256="f9", path="adapters/9", origin="import")
    )
    assert uses_of_picture(ws, heron).unknown_line.startswith("1 more adapter may hold it")
    mixed = add_made(ws, "mixed", foreign, ws.catalog.get(Adapter, "ink"))
    found = uses_of_picture(ws, heron)
    assert mixed.name in names(found.adapters)
    assert found.unknown == 1


def test_a_full_fine_tune_hands_the_picture_on(ws, heron):
    run = ws.catalog.get(Run, "ink")
    pocket = ws.catalog.get(Base, "pocket")
    tuned = ws.catalog.add(
        Base(name="tuned", family="sd15", location=f"bases/{run.id}", kind="folder", weight_hash="w")
    )
    others = make_dataset(ws, "others", (5,))
    later = ws.catalog.add(
        Run(
            name="later", family="sd15", base_id=tuned.id, dataset_id=others.id, recipe=run.recipe,
            recipe_hash="r", dataset_hash=others.content_hash, base_hash="w", seed=1, steps=5,
        )
    )  # fmt: skip
    adapter = make_adapter(ws, later, seed=4)
    drawn = add_sample(ws, base="tuned", prompt="of the tuned base")
    found = uses_of_picture(ws, heron)
    assert names(found.bases) == ["tuned"]
    assert names(found.runs) == ["ink", "later"]
    assert adapter.name in names(found.adapters)
    assert drawn.id in {sample.id for sample in found.samples}
    assert origin_of(ws, adapter)["base"]["run"]["name"] == "ink"
    assert pocket.id not in {base.id for base in found.bases}


def test_a_baked_base_hands_the_picture_on(ws, heron):
    """picture -> run -> adapter -> base with it inside -> run on that -> its adapter; a later base, too."""
    small = ws.catalog.get(Adapter, "small")

    def baked(name, *parents):
        told = [{"id": parent.id, "name": parent.name} for parent in parents]
        made = {"operation": "bake", "settings": {}, "parents": told}
        return ws.catalog.add(
            Base(name=name, family="sd15", location=f"/{name}", kind="folder", weight_hash=name, made=made)
        )

    pocket = ws.catalog.get(Base, "pocket")
    one = baked("one", pocket, small)
    baked("two", one, baked_from_nothing_of_it := add_made(ws, "other"))
    baked("three", pocket, baked_from_nothing_of_it)
    run = ws.catalog.get(Run, "ink")
    others = make_dataset(ws, "others", (5,))
    later = ws.catalog.add(
        Run(
            name="later", family="sd15", base_id=one.id, dataset_id=others.id, recipe=run.recipe,
            recipe_hash="r", dataset_hash=others.content_hash, base_hash="w", seed=1, steps=5,
        )
    )  # fmt: skip
    adapter = make_adapter(ws, later, seed=4)
    found = uses_of_picture(ws, heron)
    assert names(found.bases) == ["one", "two"]
    assert {"ink", "later"} <= set(names(found.runs))
    assert adapter.name in names(found.adapters)
    assert found.unknown == 1  # "other", which was made from nothing that is known
    assert [item["name"] for item in origin_of(ws, adapter)["base"]["parents"]] == ["pocket", "small"]


def test_the_way_back_tells_parents_run_base_and_pictures(ws):
    story = json.loads(json.dumps(origin_of(ws, ws.catalog.get(Adapter, "small"))))
    half = story["parents"][0]
    ink = half["parents"][0]
    assert (story["origin"], half["origin"], ink["origin"]) == ("resize", "merge", "run")
    assert half["made"] == {"operation": "merge", "settings": {"way": "sum"}}
    assert ink["weight"] == 0.5
    run = ink["run"]
    assert run["recipe"]["train"]["max_steps"] == 20
    assert run["versions"]["python"]
    assert (run["dataset"]["name"], run["dataset"]["state"]) == ("herons", "as it was")
    assert ink["base"]["weight_hash"] == ws.catalog.get(Base, "pocket").weight_hash
    assert [sample["prompt"] for sample in story["samples"]] == ["a heron at dusk"]
    assert story["samples"][0]["weight"] == 0.8


def test_a_parent_that_is_gone_or_stands_twice_is_told_so(ws):
    ink, half = ws.catalog.get(Adapter, "ink"), ws.catalog.get(Adapter, "half")
    again = add_made(ws, "again", ink, half)
    one, other = origin_of(ws, again)["parents"]
    assert one["run"]["name"] == "ink"
    assert other["parents"] == [{"id": ink.id, "name": "ink", "repeated": True, "weight": 0.5}]
    ws.catalog.delete(Adapter, half.id)
    gone = origin_of(ws, again)["parents"][1]
    assert gone == {
        "id": half.id, "name": "half", "tensor_sha256": "t-half", "gone": True, "weight": 0.5,
    }  # fmt: skip
    assert uses_of_picture(ws, ws.catalog.list(Image)[0].pixel_hash).unknown == 1, "small, made from half"
    assert "again" in names(uses_of_picture(ws, ws.catalog.lineage.run_images(ink.run_id)[0].blob).adapters)


@pytest.mark.parametrize("made", ["yes", 3, {"parents": "x"}, {"parents": [{"id": 1}, 2], "operation": None}])
def test_what_a_foreign_file_says_of_its_making_breaks_nothing(ws, made, heron):
    for origin in ("import", "merge"):
        foreign = ws.catalog.add(
            Adapter(name=f"f {origin}", tensor_sha256=origin, file_sha256="f", path="x", origin=origin,
                    metadata={"made": made})
        )  # fmt: skip
        assert json.dumps(origin_of(ws, foreign))
    assert uses_of_picture(ws, heron).unknown == 2


def test_adapters_inherit_what_is_noted_of_their_pictures(ws, herons):
    set_note(ws, herons, "licence", "CC BY 4.0")
    noted = set_note(ws, ws.catalog.get(Dataset, herons.id), "consent", "  the heron\nagreed ")
    adapter = make_adapter(ws, make_run(ws, noted, "second"), seed=7)
    assert (adapter.licence, adapter.consent) == ("CC BY 4.0", "the heron agreed")
    assert ws.catalog.get(Adapter, "ink").licence == "", "what is there already keeps its own"
    assert inherited([noted, adapter]) == ("CC BY 4.0", "the heron agreed")
    bare = ws.catalog.get(Adapter, "half")
    both = inherited([adapter, bare])
    assert both == ("CC BY 4.0; not stated for half", "the heron agreed; not stated for half")
    child = ws.catalog.update(Adapter, bare.id, licence=both[0])
    assert inherited([child, adapter])[0] == both[0], "a note comes once"
    assert inherited([ws.catalog.get(Adapter, "small")]) == ("", "")
    assert inherited([]) == ("", "")


def test_notes_are_bounded_plain_text(ws, herons):
    with pytest.raises(BadInput, match=r"licence: has 501 characters"):
        set_note(ws, herons, "licence", "x" * (LONGEST + 1))
    with pytest.raises(BadInput, match="has control characters"):
        set_note(ws, herons, "consent", "a\x1b[2Jb")
    assert set_note(ws, herons, "licence", "").licence == ""


def test_an_adapter_is_found_by_its_captions_and_prompts(ws):
    adapter = ws.catalog.get(Adapter, "ink")
    words = adapter.keywords.split()
    assert words[:2] == ["red", "heron"], "the most frequent first"
    assert {"moonrise", "harbour", "lighthouse", "fog"} <= set(words)
    assert not {"a", "the", "over"} & set(words)
    assert [found.id for found in ws.catalog.search_adapters("lighthouse").adapters] == [adapter.id]


def test_a_run_that_is_launched_has_its_pictures_at_once(ws, herons):
    kept = make_dataset(ws, "others", (6,))
    run = make_run(ws, herons, "third", regularisation=kept)
    assert run.state is RunState.QUEUED
    listed = ws.catalog.lineage.run_images(run.id)
    assert [image.name for image in listed] == ["0.png", "1.png", "2.png", "6.png"]
    assert all(ws.blobs.has(image.blob) for image in listed)
    assert "third" in names(uses_of_picture(ws, listed[3].pixel_hash).runs)


def test_registering_a_run_s_adapter_survives_a_lost_data_set(ws, herons):
    run = make_run(ws, herons, "fourth")
    ws.catalog.delete(Dataset, herons.id)
    adapter = make_adapter(ws, run, seed=8)
    assert adapter.licence == ""
    assert register_run_adapter(ws, run, ws.run_dir(run.id).adapter, 20) == adapter
