"""A run once more, and what tells two runs apart."""

import shutil
from datetime import timedelta

import pytest

from registry.errors import BadInput, NotFound
from registry.records import Base, Dataset, Image, Job, JobKind, Run, RunState, now
from studio.datasets.ingest import add_images, remove_images, set_captions
from studio.runs.again import run_again
from studio.runs.diff import PARTS, diff_runs
from tests.support.provenance import make_dataset, make_run, picture
from trainers.rundir import Status


@pytest.fixture
def ws(chained):
    return chained


@pytest.fixture
def run(ws):
    return ws.catalog.get(Run, "ink")


@pytest.fixture
def herons(ws):
    return ws.catalog.get(Dataset, "herons")


def told(ws, a, b):
    """{(part, key): (a, b)}, the names of pictures included where there are any."""
    found = diff_runs(ws, a, b)
    assert [PARTS.index(d.part) for d in found] == sorted(PARTS.index(d.part) for d in found)
    assert all(d.what for d in found)
    return {(d.part, d.key, d.what if d.part == "pictures" else ""): (d.a, d.b) for d in found}


def test_again_is_the_same_recipe_base_pictures_and_seed(ws, run):
    made = run_again(ws, run)
    assert (made.name, made.state, made.step, made.parent_run_id) == ("ink-again", RunState.QUEUED, 0, "")
    for field in ("recipe", "recipe_hash", "seed", "base_id", "base_hash", "dataset_id", "dataset_hash"):
        assert getattr(made, field) == getattr(run, field), field
    assert ws.run_dir(made.id).read_manifest() == ws.run_dir(run.id).read_manifest()
    assert [i.pixel_hash for i in ws.catalog.lineage.run_images(made.id)] == [
        i.pixel_hash for i in ws.catalog.lineage.run_images(run.id)
    ]
    assert ws.catalog.count(Job, kind=JobKind.TRAIN, subject_id=made.id) == 1
    assert told(ws, run, made) == {}


def test_again_with_another_seed_differs_in_that_alone(ws, run):
    made = run_again(ws, run, ["train.seed=99"], name="other seed")
    assert (made.name, made.seed) == ("other seed", 99)
    assert told(ws, run, made) == {("recipe", "train.seed", ""): (run.seed, 99)}


def test_pictures_that_changed_are_refused_unless_the_present_ones_are_asked_for(ws, run, herons):
    images = ws.catalog.list(Image, dataset_id=herons.id)
    set_captions(ws, herons, {images[1].id: "a grey heron"})
    remove_images(ws, herons, [images[0].id])
    add_images(ws, herons, [("9.png", picture(9)), ("8.png", picture(8)), ("9.txt", b"n"), ("8.txt", b"e")])
    before = ws.catalog.count(Run), sorted(path.name for path in (ws.home / "runs").iterdir())
    with pytest.raises(BadInput) as refused:
        run_again(ws, run)
    assert str(refused.value) == (
        "data set herons: has changed since run ink (2 pictures added, 1 picture removed, "
        "1 caption changed). add --present to take what is there now."
    )
    assert (ws.catalog.count(Run), sorted(p.name for p in (ws.home / "runs").iterdir())) == before
    made = run_again(ws, run, present=True)
    assert made.dataset_hash == ws.catalog.get(Dataset, herons.id).content_hash
    assert told(ws, run, made) == {
        ("pictures", "added", "9.png"): (None, "n"),
        ("pictures", "added", "8.png"): (None, "e"),
        ("pictures", "removed", "0.png"): ("a red heron by the lake", None),
        ("pictures", "caption", "1.png"): ("a red heron, standing", "a grey heron"),
    }


def test_what_is_gone_is_said_in_one_line(ws, run, herons):
    image = ws.catalog.list(Image, dataset_id=herons.id)[2]
    ws.blobs.path(image.blob).rename(ws.home / "aside")
    with pytest.raises(BadInput, match=r"picture 2\.png: of data set herons has lost its file"):
        run_again(ws, run)
    (ws.home / "aside").rename(ws.blobs.path(image.blob))
    shutil.rmtree(ws.run_dir(run.id).path)
    with pytest.raises(BadInput, match=r"run ink: has lost its list of pictures\. add --present"):
        run_again(ws, run)
    assert run_again(ws, run, present=True).state is RunState.QUEUED
    ws.catalog.delete(Dataset, herons.id)
    with pytest.raises(NotFound, match="run ink: trained on a data set that is gone"):
        run_again(ws, run, present=True)


def test_the_frozen_list_serves_when_the_data_set_is_gone(ws, run, herons):
    others = make_dataset(ws, "others", (6,))
    kept = make_run(ws, herons, "kept", regularisation=others)
    ws.catalog.delete(Dataset, herons.id)
    for then in (run, kept):
        made = run_again(ws, then)
        assert ws.run_dir(made.id).read_manifest() == ws.run_dir(then.id).read_manifest()
        assert (made.dataset_id, made.dataset_hash) == (then.dataset_id, then.dataset_hash)
    with pytest.raises(NotFound, match="run ink: trained on a data set that is gone"):
        run_again(ws, run, present=True)
    with pytest.raises(BadInput, match=r"picture 0\.png: is 64x64, smaller than the smallest bucket"):
        run_again(ws, run, ["data.bucket_step=128", "train.resolution=128"])


def test_a_base_with_other_weights_is_refused(ws, run):
    old = ws.catalog.update(Run, run.id, base_hash="0" * 64)
    with pytest.raises(BadInput, match=r"base pocket: has other weights than for run ink\. add --present"):
        run_again(ws, old)
    assert run_again(ws, old, present=True).base_hash == ws.catalog.get(Base, "pocket").weight_hash


def test_regularisation_pictures_come_along(ws, herons):
    kept = make_dataset(ws, "others", (6,))
    first = make_run(ws, herons, "kept", regularisation=kept)
    ws.catalog.delete(Dataset, kept.id)
    for present in (False, True):
        made = run_again(ws, first, present=present, name=f"kept {present}")
        assert [item.role for item in ws.run_dir(made.id).read_manifest()] == ["", "", "", "regularisation"]
    with pytest.raises(BadInput, match="is not a recipe key"):
        run_again(ws, first, ["nonsense=1"])


def test_results_versions_and_bases_are_compared(ws, run):
    made = run_again(ws, run)
    started = now()
    for each, step, loss, speed in ((run, 20, 0.25, 0.5), (made, 20, 0.125, 0.75)):
        status = Status(state="finished", step=step, steps=20, loss=loss, seconds_per_step=speed)
        ws.run_dir(each.id).write_status(status)
    one = ws.catalog.update(
        Run, run.id, state=RunState.FINISHED, step=20, versions={"torch": "2.13.0", "peft": "1"},
        started_at=started, ended_at=started + timedelta(seconds=9),
    )  # fmt: skip
    other = ws.catalog.update(
        Run, made.id, state=RunState.FINISHED, step=20, versions={"torch": "2.14.0"}, base_hash="x",
        started_at=started, ended_at=started + timedelta(seconds=15),
    )  # fmt: skip
    assert told(ws, one, other) == {
        ("base", "weights", ""): (one.base_hash, "x"),
        ("versions", "peft", ""): ("1", None),
        ("versions", "torch", ""): ("2.13.0", "2.14.0"),
        ("results", "loss", ""): (0.25, 0.125),
        ("results", "seconds_per_step", ""): (0.5, 0.75),
        ("results", "seconds", ""): (9.0, 15.0),
    }


def test_without_a_list_the_content_hashes_are_compared(ws, run, herons):
    made = run_again(ws, run)
    shutil.rmtree(ws.run_dir(run.id).path)
    assert told(ws, run, made) == {}
    other = ws.catalog.update(Run, made.id, dataset_hash="y", dataset_id="gone")
    found = told(ws, run, other)
    assert found["pictures", "dataset", "data set"] == (herons.name, "since removed")
    assert found["pictures", "content", "content of the data set; a list of pictures is gone"][1] == "y"
