"""Video, sound and 3D in the app: the form of a kind, results, files by id, the HTTP interface."""

import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.applications import Starlette
from starlette.testclient import TestClient
from streamlit.testing.v1 import AppTest

from registry.records import Base, Sample
from studio.app import state
from studio.app.components.cards import sample_cards
from studio.app.routes import ROUTES
from studio.bases import add_base
from studio.sampling.media.made import Sound
from studio.sampling.media.requests import media_values
from studio.sampling.media.writing import write_made
from studio.sampling.metadata.writing import account
from studio.sampling.request import SampleRequest
from studio.workspace import Workspace
from tests.app.conftest import Open
from tests.app.test_api import client_of, png
from tests.unit.sampling.test_media_requests import folder, motion


@pytest.fixture
def media(empty: Workspace) -> Workspace:
    """A workspace with bases that make something else."""
    root = empty.home.parent
    for name in ("svd", "stable-audio", "shap-e-image"):
        add_base(empty, name, str(folder(root, name)))
    add_base(empty, "mover", str(motion(root)))
    return empty


def sampled(ws: Workspace, name: str, files: list[str], **given: Any) -> Sample:
    """A sample as it is when it was made; its files hold little."""
    base = ws.catalog.get(Base, name)
    request = SampleRequest(**media_values(ws, base, {"prompt": "rain", "seed": 7, **given}))
    sample = ws.catalog.add(Sample(base_id=base.id, request=request.model_dump(mode="json")))
    place = ws.sample_dir(sample.id)
    place.mkdir(parents=True)
    for file in files:
        if file.endswith(".webp"):
            frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 200)]
            frames[0].save(place / file, save_all=True, append_images=frames[1:])
        elif file.endswith(".wav"):
            with wave.open(str(place / file), "wb") as sound:
                sound.setparams((1, 2, 8000, 0, "NONE", ""))
                sound.writeframes(b"\0\0" * 80)
        else:
            (place / file).write_bytes(b"ply\n")
    return ws.catalog.update(Sample, sample.id, files=(ws.relative(place / files[0]),))


def plain(elements: Any) -> str:
    """What stands there, without the backslashes that keep it from being Markdown."""
    return " ".join(element.value for element in elements).replace("\\", "")


def pressed(at: AppTest) -> AppTest:
    return at.button(key="s-make").click().run()


def test_the_form_is_that_of_the_kind(media: Workspace, open_page: Open, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(state, "wake_worker", lambda: None)
    at = open_page(media, "sample", base="svd")
    assert not at.exception
    assert [field.label for field in at.number_input][:4] == ["Width", "Height", "Frames", "Frames a second"]
    labels = [button.label for button in at.button]
    assert "Make a video" in labels
    assert "Add an adapter" not in labels
    assert not at.text_area
    pressed(at)
    assert "is missing: this base starts from a picture" in plain(at.error)

    at.selectbox(key="s-base").set_value(media.catalog.get(Base, "stable-audio").id).run()
    at.text_area(key="s-prompt").set_value("rain").run()
    at.number_input(key="m-stable-audio-seconds").set_value(2.5).run()
    pressed(at)
    assert not at.exception
    (made,) = media.catalog.list(Sample)
    assert made.request["kind"] == "stable-audio"
    assert made.request["settings"] == {"seconds": 2.5}
    assert (made.request["steps"], made.request["cfg"]) == (100, 7.0)

    at.selectbox(key="s-base").set_value(media.catalog.get(Base, "pocket").id).run()
    at.selectbox(key="s-motion").set_value(media.catalog.get(Base, "mover").id).run()
    assert not at.exception
    assert at.button(key="s-make").label == "Make a video"


def test_results_are_seen_heard_and_put_back(media: Workspace, open_page: Open):
    sound = sampled(media, "stable-audio", ["000.wav"], settings={"seconds": 3.0}, steps=300)
    thing = sampled(media, "shap-e-image", ["000.webp", "000.ply"])
    at = open_page(media, "sample", sample=f"{sound.id}/0")
    assert not at.exception
    assert at.selectbox(key="s-base").value == sound.base_id
    assert at.number_input(key="m-stable-audio-seconds").value == 3.0
    assert at.slider(key="m-stable-audio-steps").value == 300
    assert at.number_input(key="s-seed").value == 7
    (heard,), (seen,) = sample_cards(sound, {}), sample_cards(thing, {})
    assert (heard.images, heard.sound) == ((), f"/files/sample/{sound.id}/0")
    assert seen.images == (f"/pictures/sample/{thing.id}/0?full",)
    assert seen.file == f"/files/sample/{thing.id}/0/ply"

    files = TestClient(Starlette(routes=ROUTES))
    answer = files.get(heard.sound)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "audio/wav")
    answer = files.get(seen.file)
    assert (answer.content, answer.headers["content-disposition"]) == (
        b"ply\n", f'attachment; filename="{thing.id}-000.ply"'
    )  # fmt: skip
    assert files.get(seen.images[0]).headers["content-type"] == "image/webp"
    for address in (f"{heard.sound}/ply", f"/files/sample/{sound.id}/1", "/files/sample/none/0",
                    f"/files/sample/{thing.id}/0/json"):  # fmt: skip
        assert files.get(address).status_code == 404


def test_a_dropped_sound_gives_its_settings(media: Workspace, open_page: Open, tmp_path: Path):
    base = media.catalog.get(Base, "stable-audio")
    request = SampleRequest(**media_values(media, base, {"prompt": "hail", "settings": {"seconds": 4.5}}))
    own = account(request, 0, {"id": base.id, "name": base.name, "hash": base.weight_hash})
    name = write_made(Sound(np.zeros((1, 99)), 8000), tmp_path, 0, own)
    at = open_page(media, "sample")
    at.file_uploader(key="s-like").set_value([(name, (tmp_path / name).read_bytes(), "audio/wav")]).run()
    assert not at.exception
    assert at.text_area(key="s-prompt").value == "hail"
    assert at.number_input(key="m-stable-audio-seconds").value == 4.5


def test_the_pages_of_bases_say_what_they_make(media: Workspace, open_page: Open):
    at = open_page(media, "bases")
    assert not at.exception
    text = plain(at.markdown)
    assert "Stable Video Diffusion, makes video" in text
    assert "motion adapter for Stable Diffusion 1.5" in text
    assert {"Make a video", "Make a sound", "Make a thing"} <= {button.label for button in at.button}


def test_the_interface_takes_and_gives_them(media: Workspace, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(state, "wake_worker", lambda: None)
    state.use(media)
    client = client_of(media)
    asked = client.post("/api/v1/generate", json={"base": "svd", "image": png((32, 32)), "seed": 3,
                                                 "settings": {"frames": 4}})  # fmt: skip
    assert asked.status_code == 202
    made = media.catalog.get(Sample, asked.json()["id"]).request
    assert made["settings"] == {"frames": 4, "fps": 7, "motion": 127, "noise": 0.02}
    assert (made["steps"], made["width"]) == (25, 1024)
    refused = client.post("/api/v1/generate", json={"base": "svd", "settings": {"seconds": 4}})
    assert refused.status_code == 400
    assert "image: is missing" in refused.json()["detail"]
    thing = sampled(media, "shap-e-image", ["000.webp", "000.ply"])
    media.catalog.enqueue(job_for(thing))
    told = client.get(f"/api/v1/progress/{thing.id}").json()
    assert client.get(told["meshes"][0]).content == b"ply\n"
    assert client.get(told["meshes"][0].replace("/0/", "/1/")).status_code == 404
    assert {base["part"] for base in client.get("/api/v1/bases").json()} == {
        "",
        "video",
        "sound",
        "3d",
        "motion",
    }


def job_for(sample: Sample) -> Any:
    from registry.records import Job, JobKind

    return Job(kind=JobKind.SAMPLE, subject_id=sample.id)
