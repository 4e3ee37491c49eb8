"""The sampler's picture is the one that diffusers' pipeline draws from the same noise, for every family."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from registry.errors import BadInput
from studio.sampling.engine import Engine
from studio.sampling.request import SampleRequest
from studio.sampling.schedulers import (
    SCHEDULERS,
    a1111_names,
    check_scheduler,
    make_scheduler,
    scheduler_names,
)
from studio.sampling.task import SampleTask, TaskBase
from tests.support.bases import save_base
from trainers.families import FAMILIES
from trainers.families.base import BaseFiles
from trainers.guidance import begin, first_latents

SIZE, STEPS, SEED = (32, 24), 3, 11  # (height, width)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """A request, and how the pipeline is called for the same picture."""

    cfg: float = 5.0
    negative: str = ""
    scheduler: str = "default"
    edits: dict[str, dict[str, Any]] = field(default_factory=dict)  # of configs in the base


CASES = {
    "sd15": [Case(), Case(cfg=1.0, negative="b")],
    "sdxl": [Case(), Case(negative="a tree"),
             Case(edits={"model_index": {"force_zeros_for_empty_prompt": False}})],
    "sd35": [Case(), Case(negative="a tree"), Case(cfg=1.0), Case(scheduler="Heun")],
    "flux1": [Case(cfg=3.5), Case(cfg=1.0, scheduler="Euler"),
              Case(cfg=3.5, edits={"transformer/config": {"guidance_embeds": False}})],
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


def prepared(family: str, case: Case, folder: Path) -> Path:
    save_base(family, folder)
    for name, changes in case.edits.items():
        file = folder / f"{name}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


def drawn(family: str, folder: Path, case: Case) -> tuple[Tensor, list[str]]:
    """Our picture, (H, W, 3) from 0 to 255."""
    request = SampleRequest(
        base="b", prompt="a red circle", negative=case.negative, steps=STEPS, cfg=case.cfg, seed=SEED,
        width=SIZE[1], height=SIZE[0], scheduler=case.scheduler,
    )  # fmt: skip
    base = TaskBase(id="b", name="b", family=family, location=str(folder), kind="folder")
    task = SampleTask(id="s", request=request, base=base)
    pictures: list[Any] = []
    said = Engine(device="cpu").draw(task, keep=lambda _, picture, __: pictures.append(picture))
    return torch.from_numpy(np.array(pictures[0])).float(), said.warnings


def noise_of(family: Any) -> Tensor:
    """The sampler's own noise, (1, C, h, w)."""
    factor = family.latent_factor
    shape = (1, int(family.config("vae")["latent_channels"]), SIZE[0] // factor, SIZE[1] // factor)
    return torch.randn(shape, generator=torch.Generator().manual_seed(SEED))


def expected(name: str, folder: Path, case: Case) -> Tensor:
    """The pipeline's picture, called as its documentation says."""
    family = FAMILIES[name].load_class()(BaseFiles(str(folder)), dtype=torch.float32, device=CPU)
    cls: Any = family.pipeline_class()
    if name == "sd15":
        pipe = cls.from_pretrained(folder, local_files_only=True, safety_checker=None)
    else:
        pipe = cls.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    if case.scheduler == "Heun":
        pipe.scheduler = make_scheduler("Heun", dict(pipe.scheduler.config))
    noise = noise_of(family)
    options: dict[str, Any] = {"guidance_scale": case.cfg}
    if name == "flux1":
        noise = pipe._pack_latents(noise, *noise.shape)
        options["max_sequence_length"] = family.text_length
    elif case.negative:
        options["negative_prompt"] = case.negative
    said = pipe(
        "a red circle", height=SIZE[0], width=SIZE[1], num_inference_steps=STEPS, latents=noise,
        output_type="np", **options,
    )  # fmt: skip
    return torch.from_numpy(said.images[0]) * 255


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("family", "number"), [(f, n) for f, cases in CASES.items() for n in range(len(cases))]
)
def test_the_picture_is_the_pipelines(family: str, number: int, tmp_path: Path):
    case = CASES[family][number]
    folder = prepared(family, case, tmp_path / "base")
    picture, warnings = drawn(family, folder, case)
    assert (picture - expected(family, folder, case)).abs().max() < 0.5 + 0.255  # rounding to bytes, and 1e-3
    assert not warnings
    if case.cfg > 1 and not case.edits:
        other, _ = drawn(family, folder, Case(cfg=case.cfg + 4, negative=case.negative))
        assert (other - picture).abs().max() > 1, "guidance must show, or the test proves little"


@pytest.mark.parametrize("family", [name for name, info in FAMILIES.items() if info.flow])
def test_flow_bases_take_their_own_samplers_only(family: str):
    fitting = scheduler_names(family)
    assert fitting[0] == "default"
    assert {"Euler", "Euler Beta", "Heun", "DPM++ 2M", "UniPC Simple", "LCM"} < set(fitting)
    for name in SCHEDULERS:
        if name not in fitting:
            with pytest.raises(BadInput, match=r"does not fit a base of flow matching\. use default, DPM"):
                check_scheduler(name, family)
        check_scheduler(name, "sd15")


def test_samplers_of_flow_have_the_names_that_people_know():
    assert a1111_names("default", "FlowMatchEulerDiscreteScheduler") == ("Euler", "Automatic")
    assert a1111_names("Heun", "FlowMatchEulerDiscreteScheduler") == ("Heun", "Automatic")


def test_heun_shifts_by_the_law_of_the_base(tmp_path: Path):
    """The dynamic shift of FLUX.1 with factor e^mu, on the times that Heun visits."""
    folder = prepared("flux1", Case(), tmp_path / "base")
    family = FAMILIES["flux1"].load_class()(BaseFiles(str(folder)), dtype=torch.float32, device=CPU)
    shape = (1, 4, 64, 64)
    heun = begin(family, make_scheduler("Heun", family.scheduler_config()), 4, shape)
    factor = np.exp(family.sampler_options(4, shape)["mu"])
    plain = begin_plain(4, factor)
    np.testing.assert_allclose(heun.timesteps.numpy(), plain, rtol=1e-5)
    noise = torch.randn(1, 4, 8, 8)
    assert first_latents(heun, noise) is noise


def begin_plain(steps: int, factor: float) -> np.ndarray:
    """Times 1 to the smallest, evenly, shifted; each but the first twice, as Heun evaluates them."""

    def shifted(time: Any) -> Any:
        return factor * time / (1 + (factor - 1) * time)

    times = shifted(np.linspace(1.0, shifted(1e-3), steps)) * 1000
    return np.concatenate([times[:1], np.repeat(times[1:], 2)])


@pytest.mark.filterwarnings("ignore")
def test_a_negative_prompt_without_effect_is_said(tmp_path: Path):
    folder = prepared("flux1", Case(), tmp_path / "base")
    _, warnings = drawn("flux1", folder, Case(cfg=3.5, negative="blurry"))
    assert warnings == ["The negative prompt has no effect: this base takes no second call for guidance."]


@pytest.mark.filterwarnings("ignore")
def test_sides_are_whole_patches(tmp_path: Path):
    folder = prepared("sd35", Case(), tmp_path / "base")
    request = SampleRequest(base="b", steps=1, width=40, height=32)
    base = TaskBase(id="b", name="b", family="sd35", location=str(folder), kind="folder")
    engine = Engine(device="cpu")
    task = SampleTask(id="s", request=request, base=base)
    engine.draw(task, keep=lambda *_: None)
    bad = SampleTask(id="s", request=request.model_copy(update={"width": 36}), base=base)
    with pytest.raises(BadInput, match="multiples of 8 for this base"):
        engine.draw(bad, keep=lambda *_: None)
