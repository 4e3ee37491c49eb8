"""A second data set at launch: frozen with the first, marked, weighed, without the trigger word's say."""

from dataclasses import replace
from pathlib import Path

import pytest

from registry.errors import BadInput
from registry.records import Base, Dataset, Image
from studio.runs import launch
from studio.runs.forecast import forecast
from studio.workspace import Workspace
from tests.support.supervision import make_dataset
from trainers.recipe import Recipe, apply_sets, preset


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "home")


def recipe(*sets: str) -> Recipe:
    return apply_sets(preset("sd15", "character", "pocket"), sets)


def test_its_pictures_are_in_the_manifest_with_role_and_weight(ws: Workspace):
    base, dataset, others = ws.catalog.get(Base, "pocket"), make_dataset(ws), make_dataset(ws, "rings", 2)
    images = ws.catalog.list(Image, dataset_id=others.id)
    ws.catalog.replace_images(others.id, [replace(images[0], caption=" "), *images[1:]])
    wanted = recipe("preservation.weight=0.3", "preservation.class_prompt=a ring")
    run = launch.launch(ws, wanted, base, dataset, regularisation=others)
    items = ws.run_dir(run.id).read_manifest()
    assert [(item.role, item.weight) for item in items] == [("", 1.0)] * 3 + [("regularisation", 0.3)] * 2
    assert sorted(item.caption for item in items[3:]) == ["a circle", "a ring"]
    assert run.dataset_id == dataset.id


def test_what_would_undo_the_learning_is_refused(ws: Workspace):
    base, dataset = ws.catalog.get(Base, "pocket"), make_dataset(ws)
    with pytest.raises(BadInput, match="shapes: is also what is to be learned"):
        launch.launch(ws, recipe(), base, dataset, regularisation=dataset)
    empty = ws.catalog.add(Dataset(name="empty"))
    with pytest.raises(BadInput, match="empty: has no pictures"):
        launch.launch(ws, recipe(), base, dataset, regularisation=empty)
    with pytest.raises(BadInput, match=r"preservation\.class_prompt: is empty"):
        launch.launch(ws, recipe("preservation.mode=class_pictures"), base, dataset)
    assert list((ws.home / "runs").iterdir()) == []
    launch.launch(ws, recipe("preservation.mode=base_prediction"), base, dataset)  # it has a trigger word


def test_class_pictures_are_in_the_forecast(ws: Workspace):
    base, dataset = ws.catalog.get(Base, "pocket"), make_dataset(ws)
    classes = ["preservation.mode=class_pictures", "preservation.class_prompt=a ring"]
    plain, more = (forecast(ws, recipe(*sets), base, dataset) for sets in ([], classes))
    assert more.disk_bytes > plain.disk_bytes
    assert more.notes[-1] != plain.notes[-1]
