"""Ways of guidance: rescaled, true guidance for FLUX.1, distilled bases; each against diffusers' pipeline."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.bases import lcm_parts, own_config, save_base, save_parts
from tests.support.modes import (
    SIZE,
    drawn,
    family_of,
    floats,
    mask,
    picture,
    pipeline,
    saved,
    task,
    theirs,
)
from trainers.families import FAMILIES
from trainers.guidance import rescaled

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("_loaded_once")]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    made = {family: save_base(family, root / family) for family in FAMILIES}
    for family in ("sd15", "sdxl"):
        made[f"{family}-lcm"] = save_parts(
            lcm_parts(family), FAMILIES[family].pipeline, root / f"{family}-lcm"
        )
    schnell = FAMILIES["flux1"].load_class().tiny()
    config = own_config(schnell["transformer"]) | {"guidance_embeds": False}
    torch.manual_seed(3)
    schnell["transformer"] = type(schnell["transformer"]).from_config(config).eval()
    made["schnell"] = save_parts(schnell, "FluxPipeline", root / "schnell")
    return made


def sides() -> dict[str, int]:
    return {"height": SIZE[0], "width": SIZE[1]}


@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
def test_rescaled_guidance_is_the_pipelines(bases: dict[str, Path], family: str):
    pipe = pipeline(FAMILIES[family].pipeline, bases[family])
    options: dict[str, Any] = {"negative_prompt": "a tree", "guidance_rescale": 0.7, "guidance_scale": 9.0}
    expected = theirs(pipe, family_of(family, bases[family]), **options, **sides())
    ours = floats(task(family, bases[family], negative="a tree", guidance_rescale=0.7, cfg=9.0))
    assert (ours - expected).abs().max() <= 1e-4
    assert (ours - floats(task(family, bases[family], negative="a tree", cfg=9.0))).abs().max() > 1e-2


def test_rescaling_brings_each_picture_to_the_deviation_of_its_prompt():
    guided, prompt = 3 * torch.randn(2, 4, 8, 8) + 1, torch.randn(2, 4, 8, 8)
    whole = rescaled(guided, prompt, 1.0)
    for row in range(2):
        assert whole[row].std().item() == pytest.approx(prompt[row].std().item(), rel=1e-5)
    torch.testing.assert_close(rescaled(guided, prompt, 0.0), guided)


@pytest.mark.parametrize("name", ["flux1", "schnell"])
@pytest.mark.parametrize("negative", ["", "a tree"])
def test_true_guidance_of_flux_is_the_pipelines(bases: dict[str, Path], name: str, negative: str):
    pipe = pipeline("FluxPipeline", bases[name])
    family = family_of("flux1", bases[name])
    expected = theirs(
        pipe, family, negative_prompt=negative, true_cfg_scale=4.0, guidance_scale=3.5, **sides()
    )
    wanted = task("flux1", bases[name], negative=negative, true_cfg=4.0, cfg=3.5)
    ours = floats(wanted)
    assert (ours - expected).abs().max() <= 1e-4
    plain = floats(task("flux1", bases[name], cfg=3.5))
    assert (ours - plain).abs().max() > 1e-2
    assert drawn(wanted)[1].warnings == []


def test_true_guidance_also_inpaints(bases: dict[str, Path], tmp_path: Path):
    image, white = picture(), mask()
    options: dict[str, Any] = {
        "image": image,
        "mask_image": white,
        "strength": 0.8,
        "negative_prompt": "a tree",
    }
    pipe = pipeline("FluxInpaintPipeline", bases["flux1"])
    expected = theirs(pipe, family_of("flux1", bases["flux1"]), true_cfg_scale=3.0, **options, **sides())
    files = {"image": saved(image, tmp_path / "a.png"), "mask": saved(white, tmp_path / "m.png")}
    ours = floats(
        task("flux1", bases["flux1"], strength=0.8, negative="a tree", true_cfg=3.0, mask_blur=0, **files)
    )
    assert (ours - expected).abs().max() <= 1e-4


def test_schnell_ignores_the_guidance(bases: dict[str, Path]):
    low, high = (floats(task("flux1", bases["schnell"], cfg=scale)) for scale in (1.0, 7.0))
    assert torch.equal(low, high)
    low, high = (floats(task("flux1", bases["flux1"], cfg=scale)) for scale in (1.0, 7.0))
    assert (low - high).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@pytest.mark.parametrize("cfg", [1.0, 8.0])
def test_a_base_with_guidance_as_input_is_the_pipelines(bases: dict[str, Path], family: str, cfg: float):
    folder = bases[f"{family}-lcm"]
    pipe = pipeline(FAMILIES[family].pipeline, folder)
    assert type(pipe.scheduler).__name__ == "LCMScheduler"
    expected = theirs(pipe, family_of(family, folder), guidance_scale=cfg, num_inference_steps=4, **sides())
    ours = floats(task(family, folder, cfg=cfg, steps=4))
    assert (ours - expected).abs().max() <= 1e-4
    other = floats(task(family, folder, cfg=cfg + 3, steps=4))
    assert (ours - other).abs().max() > 1e-3, "guidance must show, or the test proves little"


def test_a_base_with_guidance_as_input_also_starts_from_a_picture(bases: dict[str, Path], tmp_path: Path):
    folder, image = bases["sd15-lcm"], picture()
    pipe = pipeline("LatentConsistencyModelImg2ImgPipeline", folder)
    options: dict[str, Any] = {
        "image": image,
        "strength": 1.0,
        "num_inference_steps": 4,
        "guidance_scale": 8.0,
    }
    expected = theirs(pipe, family_of("sd15", folder), **options)
    ours = floats(
        task("sd15", folder, image=saved(image, tmp_path / "a.png"), strength=1.0, steps=4, cfg=8.0)
    )
    assert (ours - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("sampler", ["LCM", "TCD", "Euler SGM Uniform"])
def test_few_step_samplers_on_a_plain_base_are_the_pipelines(bases: dict[str, Path], sampler: str):
    """What LCM, TCD and Lightning adapters are drawn with."""
    for family in ("sd15", "sdxl"):
        pipe = pipeline(FAMILIES[family].pipeline, bases[family], sampler)
        found = family_of(family, bases[family])
        # The pipelines turn TCD's own value to 0.
        eta = {"eta": 0.3} if sampler == "TCD" else {}
        expected = theirs(pipe, found, guidance_scale=1.0, num_inference_steps=4, **eta, **sides())
        ours = floats(task(family, bases[family], cfg=1.0, steps=4, scheduler=sampler))
        assert (ours - expected).abs().max() <= 1e-4


def test_what_has_no_effect_is_said(bases: dict[str, Path]):
    _, said = drawn(task("flux1", bases["flux1"], guidance_rescale=0.5, negative="x", steps=1))
    assert len(said.warnings) == 2
    _, said = drawn(task("sd15", bases["sd15"], true_cfg=3.0, steps=1))
    assert said.warnings == ["true_cfg has no effect: cfg is what this base's guidance goes by."]
