"""The page of a data set: the look at its pictures, a fix and its undo, what the model will see."""

import io
import random

import pytest
from PIL import Image as Pillow
from PIL import ImageOps
from starlette.applications import Starlette
from starlette.testclient import TestClient

from registry.records import Dataset, Job, JobKind, JobState
from studio.app import state
from studio.app.routes import ROUTES, crop_url
from studio.datasets.examine import examine
from studio.datasets.examining import perform, submit
from studio.datasets.ingest import create_dataset, images_of
from studio.imports.report import progress_file
from studio.workspace import Workspace
from tests.app.conftest import Open
from tests.app.filled import png
from tests.app.test_pages import button, texts
from tests.support.painted import painted


@pytest.fixture
def dataset(empty: Workspace) -> Dataset:
    rng = random.Random(3)
    pictures = [painted(("drawing", "clutter")[n % 2], rng, (200, 160)) for n in range(7)]
    pictures.append(ImageOps.mirror(pictures[1]))
    files = [(f"{n}.png", png(picture)) for n, picture in enumerate(pictures)]
    captions = [(f"{n}.txt", f"zibbo, picture {n}".encode()) for n in range(8)]
    return create_dataset(empty, "shapes", [*files, *captions], trigger="zibbo").dataset


def test_a_look_is_asked_for_a_fix_made_and_taken_back(empty: Workspace, dataset: Dataset, open_page: Open):
    at = open_page(empty, "datasets", dataset=dataset.id)
    assert "The pictures were not looked at yet" in texts(at)
    job = submit(empty, dataset)
    assert submit(empty, dataset).id == job.id  # once is enough
    perform(empty, job)  # as the worker's child does
    empty.catalog.finish_job(job.id, JobState.DONE)
    assert progress_file(empty, job.id).exists()
    at = open_page(empty, "datasets", dataset=dataset.id)
    assert "1 picture is a copy, hardly changed: 7.png of 1.png." in texts(at)
    at = button(at, "Leave the copies out").click().run()
    assert not at.exception
    assert [image.name for image in images_of(empty, dataset)] == [f"{n}.png" for n in range(7)]
    assert "Left 1 picture out: 7.png." in texts(at)
    at = button(at, "Undo").click().run()
    assert [image.name for image in images_of(empty, dataset)] == [f"{n}.png" for n in range(8)]
    assert empty.catalog.count(Job, kind=JobKind.EXAMINE) == 1


def test_what_the_model_will_see(empty: Workspace, dataset: Dataset, open_page: Open):
    examine(empty, images_of(empty, dataset))
    at = open_page(empty, "datasets", dataset=dataset.id)
    at = at.toggle[0].set_value(True).run()
    assert not at.exception
    assert "What is dark is cut off" in texts(at)
    assert "8 pictures" in texts(at)
    image = images_of(empty, dataset)[0]
    state.use(empty)
    with TestClient(Starlette(routes=ROUTES)) as client:
        answer = client.get(crop_url(image, (50, 0, 150, 160)))
        assert answer.status_code == 200
        assert client.get(crop_url(image, (50, 0, 150, 160)).replace("-", "+")).status_code == 404
        again = client.get(
            crop_url(image, (50, 0, 150, 160)), headers={"If-None-Match": answer.headers["etag"]}
        )
        assert again.status_code == 304
    with Pillow.open(io.BytesIO(answer.content)) as shown:
        grey = shown.convert("L")
        outside, inside = grey.crop((0, 5, 40, 155)), grey.crop((60, 5, 140, 155))
    with Pillow.open(empty.blobs.path(image.blob)) as stored:
        before = stored.convert("L")
    assert _mean(outside) < 0.5 * _mean(before.crop((0, 5, 40, 155)))
    assert _mean(inside) == pytest.approx(_mean(before.crop((60, 5, 140, 155))), abs=4)


def _mean(picture: Pillow.Image) -> float:
    values = picture.tobytes()
    return sum(values) / len(values)
