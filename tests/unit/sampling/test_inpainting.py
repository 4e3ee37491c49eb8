"""Inpainting: diffusers' pictures for every family, and what happens in pixels before and after."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from registry.errors import BadInput
from studio.sampling.canvas import Canvas, blurred, crop_box, extended, filled, make_canvas
from studio.sampling.request import SampleRequest
from tests.support.bases import inpainting_parts, save_base, save_parts, wide_parts
from tests.support.modes import SIZE, drawn, family_of, floats, mask, picture, pipeline, saved, task, theirs
from trainers.families import FAMILIES

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("_loaded_once")]

PIPELINES = {
    "sd15": "StableDiffusionInpaintPipeline",
    "sd21": "StableDiffusionInpaintPipeline",
    "sdxl": "StableDiffusionXLInpaintPipeline",
    "sd35": "StableDiffusion3InpaintPipeline",
    "flux1": "FluxInpaintPipeline",
    "sd15-nine": "StableDiffusionInpaintPipeline",
    "sd21-nine": "StableDiffusionInpaintPipeline",
    "sdxl-nine": "StableDiffusionXLInpaintPipeline",
    "flux1-fill": "FluxFillPipeline",
}
CASES = [
    *((name, strength, "default") for name in PIPELINES for strength in (0.6, 1.0)),
    *(("sd15", 0.6, sampler) for sampler in ("Euler", "Euler a", "DPM++ 2M Karras", "Heun", "UniPC", "LCM")),
    ("sd15", 1.0, "Euler"),
    ("sd15-nine", 0.6, "Euler"),
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    made: dict[str, Path] = {}
    for name in PIPELINES:
        family, _, special = name.partition("-")
        if special:
            made[name] = save_parts(inpainting_parts(family), FAMILIES[family].pipeline, root / name)
        elif family == "sd35":  # its pipeline wants 16 channels
            made[name] = save_parts(wide_parts(family), FAMILIES[family].pipeline, root / name)
        else:
            made[name] = save_base(family, root / name)
    return made


@pytest.mark.parametrize(("name", "strength", "sampler"), CASES)
def test_the_picture_is_the_pipelines(
    bases: dict[str, Path], tmp_path: Path, name: str, strength: float, sampler: str
):
    family = name.partition("-")[0]
    image, white = picture(), mask()
    files = {"image": saved(image, tmp_path / "a.png"), "mask": saved(white, tmp_path / "m.png")}
    wanted = task(
        family, bases[name], strength=strength, scheduler=sampler, mask_blur=0, keep_unmasked=False, **files
    )
    pipe = pipeline(PIPELINES[name], bases[name], sampler)
    expected = theirs(
        pipe, family_of(family, bases[name]), image=image, mask_image=white, strength=strength,
        height=SIZE[0], width=SIZE[1],
    )  # fmt: skip
    ours = floats(wanted)
    assert (ours - expected).abs().max() <= 1e-4
    outside = np.asarray(white) == 0
    change = np.abs(ours[0].permute(1, 2, 0).numpy() - np.asarray(image) / 255)
    assert change[~outside].mean() > 0.02, "what is masked must change, or the test proves little"


@pytest.mark.parametrize("name", ["sd15", "sdxl-nine", "flux1-fill"])
def test_pixels_outside_the_mask_stay_exactly(bases: dict[str, Path], tmp_path: Path, name: str):
    image, white = picture(), mask()
    files = {"image": saved(image, tmp_path / "a.png"), "mask": saved(white, tmp_path / "m.png")}
    for blur in (0, 4):
        pictures, _ = drawn(task(name.partition("-")[0], bases[name], mask_blur=blur, **files))
        stays = np.asarray(blurred(white, blur)) == 0
        assert 0 < stays.sum() < stays.size
        assert np.array_equal(np.asarray(pictures[0])[stays], np.asarray(image)[stays])
        assert not np.array_equal(np.asarray(pictures[0])[~stays], np.asarray(image)[~stays])


def test_only_the_masked_part_is_drawn_at_full_size_and_put_back(bases: dict[str, Path], tmp_path: Path):
    image, white = picture((64, 80)), Image.new("L", (80, 64))
    white.paste(255, (50, 20, 60, 30))
    files = {"image": saved(image, tmp_path / "a.png"), "mask": saved(white, tmp_path / "m.png")}
    wanted = task("sd15", bases["sd15"], only_masked=True, mask_padding=4, mask_blur=0, **files)
    canvas = make_canvas(wanted.request, Path(files["image"]), Path(files["mask"]))
    left, top, right, bottom = canvas.box
    assert canvas.picture.size == (24, 32)
    assert left <= 46
    assert top <= 16
    assert right >= 64
    assert bottom >= 34
    assert (right - left) / (bottom - top) == pytest.approx(24 / 32, rel=0.05)
    (made,), _ = drawn(wanted)
    assert made.size == (80, 64)
    changed = np.abs(np.asarray(made).astype(int) - np.asarray(image)).max(-1) > 0
    assert changed[20:30, 50:60].any()
    changed[20:30, 50:60] = False
    assert not changed.any()


@pytest.mark.parametrize("name", ["sd15", "sd35", "flux1-fill"])
def test_outpainting_adds_to_the_picture_and_keeps_it(bases: dict[str, Path], tmp_path: Path, name: str):
    image = picture((32, 16))
    wanted = task(
        name.partition("-")[0], bases[name], image=saved(image, tmp_path / "a.png"), outpaint=(8, 0, 0, 0),
        strength=1.0, mask_blur=0,
    )  # fmt: skip
    (made,), _ = drawn(wanted)
    assert made.size == (24, 32)
    assert np.array_equal(np.asarray(made)[:, 8:], np.asarray(image))
    start = make_canvas(wanted.request, Path(wanted.request.image), None).picture
    assert not np.array_equal(np.asarray(made)[:, :8], np.asarray(start)[:, :8])


@pytest.mark.parametrize("content", ["original", "fill", "noise", "nothing"])
def test_every_content_starts_from_something_else(bases: dict[str, Path], tmp_path: Path, content: str):
    files = {"image": saved(picture(), tmp_path / "a.png"), "mask": saved(mask(), tmp_path / "m.png")}
    options = {"strength": 0.5, "mask_blur": 0, **files}
    usual = floats(task("sd15", bases["sd15"], **options))
    other = floats(task("sd15", bases["sd15"], mask_content=content, **options))
    assert bool((usual - other).abs().max() > 1e-3) == (content != "original")


def test_a_base_made_for_inpainting_also_draws_without_a_mask(bases: dict[str, Path], tmp_path: Path):
    image = saved(picture(), tmp_path / "a.png")
    for name in ("sd15-nine", "flux1-fill"):
        family = name.partition("-")[0]
        for options in ({}, {"image": image, "strength": 0.5}):
            (made,), _ = drawn(task(family, bases[name], **options))
            assert np.asarray(made).std() > 0


# --- the canvas


def request(**fields: object) -> SampleRequest:
    return SampleRequest.model_validate({"base": "b", "width": 24, "height": 32, **fields})


def test_the_edge_goes_on_outwards():
    image = picture((4, 6))
    wider, white = extended(image, None, (1, 2, 3, 0))
    assert wider.size == white.size == (10, 6)
    pixels = np.asarray(wider)
    assert np.array_equal(pixels[2:, 1:7], np.asarray(image))
    assert np.array_equal(pixels[0, 1:7], np.asarray(image)[0])
    assert np.array_equal(pixels[2:, 9], np.asarray(image)[:, -1])
    inside = np.zeros((6, 10), bool)
    inside[2:, 1:7] = True
    assert np.array_equal(np.asarray(white) == 0, inside)


@pytest.mark.parametrize(
    ("box", "size", "padding", "expected"),
    [
        ((10, 10, 20, 20), (64, 64), 5, (5, 5, 25, 25)),
        ((10, 10, 20, 20), (128, 64), 0, (5, 10, 25, 20)),
        ((0, 0, 10, 10), (128, 64), 0, (0, 0, 20, 10)),  # at the edge it goes to the other side
        ((90, 10, 100, 20), (128, 64), 0, (80, 10, 100, 20)),
        ((0, 0, 100, 50), (64, 64), 0, (0, 0, 100, 50)),  # no room for the shape: stretched
    ],
)
def test_the_crop_has_the_shape_of_the_drawing(box, size, padding, expected):
    white = Image.new("L", (100, 50))
    white.paste(255, box)
    assert crop_box(white, size, padding) == expected


def test_filling_takes_the_colours_around():
    image = Image.new("RGB", (40, 40), (200, 10, 10))
    image.paste((10, 10, 200), (20, 0, 40, 40))
    white = Image.new("L", (40, 40))
    white.paste(255, (10, 10, 30, 30))
    done = np.asarray(filled(image, white)).astype(int)
    assert np.array_equal(done[np.asarray(white) == 0], np.asarray(image)[np.asarray(white) == 0])
    assert done[20, 11, 0] > 150 > 60 > done[20, 28, 0]
    assert done[20, 28, 2] > 150


def test_a_black_mask_is_refused(tmp_path: Path):
    files = saved(picture(), tmp_path / "a.png"), saved(Image.new("L", (24, 32)), tmp_path / "m.png")
    with pytest.raises(BadInput, match="the mask: is all black"):
        make_canvas(request(), Path(files[0]), Path(files[1]))


def test_without_a_mask_the_drawing_is_the_picture():
    image, other = picture(), picture(seed=1)
    canvas = Canvas(image, None, image, None, (0, 0, 24, 32))
    assert canvas.finish(other) is other
