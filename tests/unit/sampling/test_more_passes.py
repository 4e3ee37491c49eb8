"""Variations, a second pass at a larger size, tiles, and the refiner."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from registry.errors import BadInput
from studio.sampling.progress import Progress
from studio.sampling.starts import slerp
from studio.sampling.tiles import Quilt, tiles
from tests.support.bases import inpainting_parts, save_base, save_parts, save_refiner
from tests.support.modes import (
    PROMPT,
    SEED,
    SIZE,
    decoded,
    drawn,
    family_of,
    floats,
    mask,
    picture,
    pipeline,
    saved,
    task,
    unit,
)
from trainers.families import FAMILIES

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("_loaded_once")]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    made = {family: save_base(family, root / family) for family in FAMILIES}
    made["refiner"] = save_refiner(root / "refiner")
    parts = inpainting_parts("sdxl")
    made["sdxl-nine"] = save_parts(parts, "StableDiffusionXLInpaintPipeline", root / "nine")
    return made


# --- variations


def test_a_variation_is_the_pipelines_picture_of_the_turned_noise(bases: dict[str, Path]):
    family = family_of("sd15", bases["sd15"])
    noise, other = (torch.randn(1, 4, 8, 6, generator=torch.Generator().manual_seed(s)) for s in (SEED, 901))
    turned = torch.empty_like(noise)
    for channel in range(4):  # one column at a time, by hand
        for column in range(6):
            a, b = noise[0, channel, :, column].double(), other[0, channel, :, column].double()
            angle = torch.acos(a @ b / (a.norm() * b.norm()))
            mixed = (torch.sin(0.7 * angle) * a + torch.sin(0.3 * angle) * b) / torch.sin(angle)
            turned[0, channel, :, column] = mixed.float()
    pipe = pipeline("StableDiffusionPipeline", bases["sd15"])
    latents = pipe(
        PROMPT, latents=turned, num_inference_steps=5, guidance_scale=5.0, output_type="latent",
        height=SIZE[0], width=SIZE[1],
    ).images  # fmt: skip
    expected = unit(family.decode_image(latents))
    ours = floats(task("sd15", bases["sd15"], subseed=900, subseed_strength=0.3, count=2))
    assert (ours - expected).abs().max() <= 1e-4


def test_variations_of_one_request_share_the_seed(bases: dict[str, Path]):
    two, _ = drawn(task("sd15", bases["sd15"], subseed=5, subseed_strength=0.2, count=2))
    second, _ = drawn(task("sd15", bases["sd15"], subseed=6, subseed_strength=0.2))
    plain, _ = drawn(task("sd15", bases["sd15"]))
    none, _ = drawn(task("sd15", bases["sd15"], subseed=6))
    assert two[1].tobytes() == second[0].tobytes() != two[0].tobytes()
    assert none[0].tobytes() == plain[0].tobytes() != two[0].tobytes()


def test_the_ends_of_the_arc_are_the_noises():
    a, b = torch.randn(4, 8, 6), torch.randn(4, 8, 6)
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    assert torch.equal(slerp(a, a, 0.5), a)


# --- a second pass


@pytest.mark.parametrize("family", FAMILIES)
def test_hires_is_image_to_image_of_the_enlarged_picture(bases: dict[str, Path], tmp_path: Path, family: str):
    hires = {"scale": 1.5, "strength": 0.6, "steps": 4}
    both = floats(task(family, bases[family], hires=hires))
    (first,), _ = drawn(task(family, bases[family]))
    larger = ImageOps.fit(first, (32, 48), Image.Resampling.LANCZOS)  # 36 is no multiple of 8
    size = {"width": 32, "height": 48}
    alone = floats(
        task(family, bases[family], image=saved(larger, tmp_path / "l.png"), strength=0.6, steps=4, **size)
    )
    assert both.shape == alone.shape
    assert (both - alone).abs().max() <= 1e-4


def test_latents_can_be_enlarged_instead(bases: dict[str, Path]):
    hires = {"scale": 2.0, "strength": 0.7, "upscaler": "latent"}
    with decoded() as kept:
        (made,), _ = drawn(task("sd15", bases["sd15"], hires=hires))
    assert made.size == (48, 64)
    assert len(kept) == 1  # the first pass is not decoded


def test_progress_counts_the_steps_of_all_passes(bases: dict[str, Path], tmp_path: Path):
    from studio.sampling.engine import Engine

    image = saved(picture(), tmp_path / "a.png")
    cases: list[tuple[dict[str, Any], int]] = [
        ({}, 5),
        ({"scheduler": "PNDM"}, 5),
        ({"scheduler": "Heun"}, 5),
        ({"image": image, "strength": 0.6}, 3),
        ({"hires": {"scale": 1.5, "strength": 0.5, "steps": 4}}, 7),
        ({"image": image, "strength": 0.6, "upscale": {"scale": 2.0, "overlap": 8}}, 3 * 9),
    ]
    for fields, steps in cases:
        news: list[Progress] = []
        wanted = task("sd15", bases["sd15"], **fields)
        Engine(device="cpu").draw(wanted, keep=lambda *_: None, say=news.append)
        seen = [item.step for item in news if item.phase == "drawing"]
        assert seen == sorted(seen), fields
        assert (seen[-1], news[-1].steps) == (steps, steps), fields


# --- tiles


@pytest.mark.parametrize("family", ["sd15", "flux1"])
def test_one_tile_is_image_to_image_of_the_enlarged_picture(
    bases: dict[str, Path], tmp_path: Path, family: str
):
    small = picture((24, 16))
    upscale = {"scale": 2.0, "overlap": 8}
    image = saved(small, tmp_path / "s.png")
    options: dict[str, Any] = {"strength": 0.5, "width": 32, "height": 48}
    tiled, _ = drawn(task(family, bases[family], image=image, upscale=upscale, **options))
    larger = saved(small.resize((32, 48), Image.Resampling.LANCZOS), tmp_path / "l.png")
    plain, _ = drawn(task(family, bases[family], image=larger, **options))
    assert tiled[0].size == (32, 48)
    assert np.abs(np.asarray(tiled[0]).astype(int) - np.asarray(plain[0])).max() <= 1


def test_several_tiles_make_one_picture(bases: dict[str, Path], tmp_path: Path):
    image = saved(picture((40, 40)), tmp_path / "s.png")
    wanted = task("sd15", bases["sd15"], image=image, strength=0.4, upscale={"scale": 2.0, "overlap": 8})
    two, _ = drawn(wanted)
    again, _ = drawn(wanted)
    assert two[0].size == (80, 80)
    assert two[0].tobytes() == again[0].tobytes()


@pytest.mark.parametrize(
    ("size", "tile", "overlap"),
    [((80, 80), (24, 32), 8), ((512, 300), (128, 96), 32), ((16, 16), (64, 64), 8)],
)
def test_tiles_cover_everything_and_overlap(size: tuple[int, int], tile: tuple[int, int], overlap: int):
    boxes = tiles(size, tile, overlap, 4)
    covered = np.zeros(size[::-1], int)
    for left, top, right, bottom in boxes:
        assert (right - left, bottom - top) == (min(tile[0], size[0]), min(tile[1], size[1]))
        assert left % 4 == top % 4 == 0
        covered[top:bottom, left:right] += 1
    assert covered.min() >= 1
    for axis in (0, 1):
        starts = sorted({box[axis] for box in boxes})
        gaps = np.diff(starts)
        assert (tile[axis] - gaps >= overlap - 4).all()


def test_a_quilt_of_one_picture_is_that_picture():
    whole = picture((80, 72))
    quilt = Quilt(whole.size, 8)
    for box in tiles(whole.size, (24, 32), 8, 4):
        quilt.lay(whole.crop(box), box)
    assert quilt.picture().tobytes() == whole.tobytes()


# --- the refiner


def refined(bases: dict[str, Path], at: float, sampler: str, steps: int = 6) -> Any:
    """Both pipelines of diffusers in turn."""
    base = pipeline("StableDiffusionXLPipeline", bases["sdxl"], sampler)
    options: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": 5.0, "output_type": "latent"}
    options["negative_prompt"] = "a tree"
    generator = torch.Generator().manual_seed(SEED)
    latents = base(
        PROMPT, height=SIZE[0], width=SIZE[1], denoising_end=at, generator=generator, **options
    ).images
    refiner = pipeline("StableDiffusionXLImg2ImgPipeline", bases["refiner"], sampler)
    latents = refiner(PROMPT, image=latents, denoising_start=at, generator=generator, **options).images
    return unit(family_of("sdxl", bases["sdxl"]).decode_image(latents))


@pytest.mark.parametrize(
    ("at", "sampler"), [(0.8, "default"), (0.5, "Euler"), (0.6, "DPM++ 2M"), (0.6, "Heun")]
)
def test_the_refined_picture_is_that_of_the_pipelines_in_turn(
    bases: dict[str, Path], at: float, sampler: str
):
    fields = {"steps": 6, "negative": "a tree", "scheduler": sampler}
    ours = floats(task("sdxl", bases["sdxl"], refiner=bases["refiner"], refiner_at=at, **fields))
    assert (ours - refined(bases, at, sampler)).abs().max() <= 1e-4
    assert (ours - floats(task("sdxl", bases["sdxl"], **fields))).abs().max() > 1e-2


def test_the_refiner_also_ends_image_to_image_and_inpainting(bases: dict[str, Path], tmp_path: Path):
    image, white = picture(), mask()
    files = {"image": saved(image, tmp_path / "a.png")}
    for name, fields in (
        ("sdxl", {"strength": 0.1, "steps": 20, **files}),  # begins below the hand-over
        ("sdxl", {"strength": 0.9, "mask": saved(white, tmp_path / "m.png"), "mask_blur": 0, **files}),
        ("sdxl-nine", {"strength": 0.9, "mask": str(tmp_path / "m.png"), "mask_blur": 0, **files}),
    ):
        (made,), _ = drawn(task("sdxl", bases[name], refiner=bases["refiner"], **fields))
        (plain,), _ = drawn(task("sdxl", bases[name], **fields))
        assert made.tobytes() != plain.tobytes()
        if "mask" in fields:
            outside = np.asarray(white) == 0
            assert np.array_equal(np.asarray(made)[outside], np.asarray(image)[outside])


def test_a_strength_too_small_is_refused_by_the_engine_too(bases: dict[str, Path], tmp_path: Path):
    with pytest.raises(BadInput, match="leaves no step of 5"):
        drawn(task("sd15", bases["sd15"], image=saved(picture(), tmp_path / "a.png"), strength=0.1))
