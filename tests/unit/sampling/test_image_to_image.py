"""Image to image: the picture is the one that diffusers' pipeline draws, for every family."""

from pathlib import Path
from typing import Any

import pytest

from registry.errors import BadInput
from studio.sampling.steps import check_strength, first_step
from tests.support.bases import save_base
from tests.support.modes import SIZE, drawn, family_of, floats, picture, pipeline, saved, task, theirs

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("_loaded_once")]

PIPELINES = {
    "sd15": "StableDiffusionImg2ImgPipeline",
    "sd21": "StableDiffusionImg2ImgPipeline",
    "sdxl": "StableDiffusionXLImg2ImgPipeline",
    "sd35": "StableDiffusion3Img2ImgPipeline",
    "flux1": "FluxImg2ImgPipeline",
}
SAMPLERS = [
    "Euler", "Euler a", "DPM++ 2M Karras", "DPM++ 2M SDE", "DPM++ SDE", "Heun", "DPM2", "UniPC", "DEIS",
    "PNDM", "DDPM", "LCM", "TCD",
]  # fmt: skip
CASES = [
    *((family, 0.5, "default") for family in PIPELINES),
    *((family, 1.0, "default") for family in PIPELINES),
    *(("sd15", 0.7, sampler) for sampler in SAMPLERS),
    ("sd35", 0.7, "Heun"),
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {family: save_base(family, root / family) for family in PIPELINES}


@pytest.mark.parametrize(("family", "strength", "sampler"), CASES)
def test_the_picture_is_the_pipelines(
    bases: dict[str, Path], tmp_path: Path, family: str, strength: float, sampler: str
):
    image = picture()
    wanted = task(
        family, bases[family], image=saved(image, tmp_path / "a.png"), strength=strength, scheduler=sampler
    )
    sides: dict[str, Any] = {"height": SIZE[0], "width": SIZE[1]} if family in ("sd35", "flux1") else {}
    if sampler == "TCD":
        sides = {"eta": 0.3}  # the pipeline turns the scheduler's own value to 0
    pipe = pipeline(PIPELINES[family], bases[family], sampler)
    expected = theirs(pipe, family_of(family, bases[family]), image=image, strength=strength, **sides)
    ours = floats(wanted)
    assert (ours - expected).abs().max() <= 1e-4
    other = floats(
        task(family, bases[family], image=saved(picture(seed=1), tmp_path / "b.png"), strength=0.3)
    )
    assert (ours - other).abs().max() > 1e-2, "the picture must show, or the test proves little"


def test_a_picture_depends_on_its_own_seed_alone(bases: dict[str, Path], tmp_path: Path):
    image = saved(picture(), tmp_path / "a.png")
    three, _ = drawn(task("sd15", bases["sd15"], image=image, count=3))
    alone, _ = drawn(task("sd15", bases["sd15"], image=image, seed=13))
    assert three[2].tobytes() == alone[0].tobytes()
    assert three[2].tobytes() != three[0].tobytes()


def test_a_picture_of_another_size_is_covered_and_cut_in_the_middle(bases: dict[str, Path], tmp_path: Path):
    wide = picture((64, 96))
    fitted = wide.resize((48, 32), 1).crop((12, 0, 36, 32))
    one, _ = drawn(task("sd15", bases["sd15"], image=saved(wide, tmp_path / "a.png"), strength=0.4))
    two, _ = drawn(task("sd15", bases["sd15"], image=saved(fitted, tmp_path / "b.png"), strength=0.4))
    assert one[0].size == (24, 32)
    difference = max(abs(a - b) for a, b in zip(one[0].tobytes(), two[0].tobytes(), strict=True))
    assert difference <= 2  # Pillow cuts before it scales


@pytest.mark.parametrize(
    ("steps", "strength", "diffusion", "flow"),
    [(25, 0.75, 7, 6), (50, 0.58, 22, 21), (4, 0.5, 2, 2), (5, 0.5, 3, 2), (10, 0.0, 10, 10), (10, 1.0, 0, 0),
     (10, 0.05, 10, 9)],
)  # fmt: skip
def test_steps_that_a_strength_leaves(steps: int, strength: float, diffusion: int, flow: int):
    assert first_step(steps, strength, flow=False) == diffusion
    assert first_step(steps, strength, flow=True) == flow


def test_a_strength_that_leaves_nothing_is_refused():
    with pytest.raises(BadInput, match=r"strength 0\.05: leaves no step of 10\. take 0\.1 or more"):
        check_strength(10, 0.05, flow=False)
    check_strength(10, 0.1, flow=False)
