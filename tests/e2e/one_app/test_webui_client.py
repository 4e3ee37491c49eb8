"""A published client of A1111, as it is, against `studio app`: what it asks for is what is drawn."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import webuiapi
from PIL import Image as Pillow
from PIL import ImageDraw

from registry.records import Sample
from studio.workspace import Workspace
from tests.e2e.one_app.conftest import TOKEN
from tests.support.sampling import add_adapter

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SMALL = {"width": 64, "height": 64, "steps": 4, "cfg_scale": 3.0}


@pytest.fixture(scope="module")
def api(workspace: Workspace, address: str) -> webuiapi.WebUIApi:
    """The client, signed in as A1111 asks for it."""
    add_adapter(workspace, "ink", seed=3)
    return webuiapi.WebUIApi(baseurl=f"{address}/sdapi/v1", username="me", password=TOKEN)


def pixels(picture: Pillow.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB"), dtype=np.int16)


def test_text_to_image(api: webuiapi.WebUIApi, workspace: Workspace):
    api.util_set_model("pocket")
    assert api.util_get_current_model().startswith("pocket [")
    plain = api.txt2img(prompt="a red circle", seed=5, batch_size=2, **SMALL)
    again = api.txt2img(prompt="a red circle", seed=6, **SMALL)
    assert [picture.size for picture in plain.images] == [(64, 64)] * 2
    assert np.array_equal(pixels(plain.images[1]), pixels(again.image))
    assert plain.info["all_seeds"] == [5, 6]
    assert plain.info["sampler_name"] == "Euler a"
    assert "Seed: 6" in plain.info["infotexts"][1]
    with_ink = api.txt2img(prompt="a red circle <lora:ink:1>", seed=5, **SMALL)
    assert np.abs(pixels(with_ink.image) - pixels(plain.image)).max() > 8
    sample = workspace.catalog.get(Sample, with_ink.info["sample"])
    assert [use.weight for use in sample.adapters] == [1.0]


def test_its_own_picture_says_how_it_was_made(api: webuiapi.WebUIApi):
    made = api.txt2img(prompt="a blue square", negative_prompt="rain", seed=9, **SMALL)
    said = api.png_info(made.image)
    assert said.info.startswith("a blue square\nNegative prompt: rain\n")


def test_image_to_image_and_inpaint(api: webuiapi.WebUIApi):
    start = Pillow.new("RGB", (64, 64), "green")
    near = api.img2img([start], prompt="a red circle", seed=1, denoising_strength=0.25, **SMALL)
    far = api.img2img([start], prompt="a red circle", seed=1, denoising_strength=1.0, **SMALL)
    distance = [np.abs(pixels(picture.image) - pixels(start)).mean() for picture in (near, far)]
    assert distance[0] < distance[1]
    mask = Pillow.new("L", (64, 64), 0)
    ImageDraw.Draw(mask).rectangle((32, 0, 63, 63), fill=255)
    drawn = api.img2img(
        [start], mask_image=mask, mask_blur=0, inpaint_full_res=False, prompt="a red circle", seed=1,
        denoising_strength=1.0, **SMALL,
    ).image  # fmt: skip
    change = np.abs(pixels(drawn) - pixels(start)).max(axis=2)
    assert change[:, :30].max() == 0
    assert change[:, 34:].max() > 30


def test_hires(api: webuiapi.WebUIApi):
    large = api.txt2img(
        prompt="a red circle", seed=1, enable_hr=True, hr_scale=1.5, denoising_strength=0.5,
        hr_upscaler=webuiapi.HiResUpscaler.Lanczos, **SMALL,
    )  # fmt: skip
    assert large.image.size == (96, 96)


def test_lists(api: webuiapi.WebUIApi):
    assert "ink" in [lora["name"] for lora in api.get_loras()]
    assert "Euler a" in api.util_get_sampler_names()
    assert "karras" in api.util_get_scheduler_names()
    assert any(title.startswith("pocket [") for title in api.util_get_model_names())


def test_progress_and_interrupt(api: webuiapi.WebUIApi):
    results: list[webuiapi.WebUIApiResult] = []
    long = SMALL | {"steps": 400}
    thread = threading.Thread(
        target=lambda: results.append(api.txt2img(prompt="a red circle", seed=1, batch_size=8, **long))
    )
    thread.start()
    deadline = time.monotonic() + 60
    while (seen := api.get_progress())["state"]["sampling_step"] < 2:
        assert time.monotonic() < deadline, seen
        time.sleep(0.1)
    assert 0 < seen["progress"] < 1
    assert seen["state"]["sampling_steps"] == 400
    assert seen["state"]["job_count"] == 1
    api.interrupt()
    thread.join(30)
    assert not thread.is_alive()
    assert results[0].info["sample"]
    assert api.get_progress()["state"]["job_count"] == 0


def test_what_it_cannot_do_it_says(api: webuiapi.WebUIApi):
    with pytest.raises(RuntimeError, match="restore_faces: is not built in here"):
        api.txt2img(prompt="x", restore_faces=True, **SMALL)


def test_a_wrong_token_is_refused(api: webuiapi.WebUIApi, tmp_path: Path):
    stranger = webuiapi.WebUIApi(baseurl=api.baseurl, username="me", password="wrong")
    stranger.has_adetailer = stranger.has_controlnet = stranger.has_animatediff = False
    with pytest.raises(RuntimeError, match="needs the token"):
        stranger.txt2img(prompt="x", **SMALL)
