"""A picture steered by networks is the one that diffusers' own pipelines draw, for every family and class."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from studio.sampling.control.nets import Net
from studio.sampling.control.steering import Control, Steer
from studio.sampling.painting import Pass, paint
from studio.sampling.schedulers import make_scheduler
from studio.sampling.starts import from_noise, new_noise
from tests.support import controls
from tests.support.bases import save_base
from trainers.families import FAMILIES
from trainers.families.base import BaseFiles, Family
from trainers.guidance import Guided

SIZE, STEPS, SEED = (32, 24), 4, 11  # (height, width)
PROMPT, NEGATIVE = "a red circle", "a tree"
pytestmark = pytest.mark.filterwarnings("ignore")


@dataclass(frozen=True)
class Use:
    """A network in a case, and how it acts."""

    make: Callable[[Family], Any]
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0
    mode: int | None = None
    kind: str = "depth"


@dataclass(frozen=True)
class Case:
    """A pipeline of diffusers, its extra arguments, and the networks."""

    family: str
    pipeline: str
    uses: tuple[Use, ...]
    cfg: float = 5.0
    guess: bool = False
    options: dict[str, Any] = field(default_factory=dict)


def net(seed: int = 0, **config: Any) -> Callable[[Family], Any]:
    return lambda family: controls.controlnet(family.denoiser, seed, **config)


def sd3(seed: int = 0, **config: Any) -> Callable[[Family], Any]:
    return lambda _: controls.sd3_controlnet(seed, **config)


def flux(seed: int = 0, **config: Any) -> Callable[[Family], Any]:
    return lambda _: controls.flux_controlnet(seed, **config)


SD, XL = "StableDiffusionControlNetPipeline", "StableDiffusionXLControlNetPipeline"
XL_UNION, SD3 = "StableDiffusionXLControlNetUnionPipeline", "StableDiffusion3ControlNetPipeline"
FLUX = "FluxControlNetPipeline"
SINGLE = {"joint_attention_dim": None, "use_pos_embed": False, "force_zeros_for_pooled_projection": False}
CASES = {
    "sd15": Case("sd15", SD, (Use(net()),)),
    "sd15 weak": Case("sd15", SD, (Use(net(), weight=0.4, start=0.25, end=0.75),)),
    "sd15 without guidance": Case("sd15", SD, (Use(net(), weight=1.5),), cfg=1.0),
    "sd15 guess": Case("sd15", SD, (Use(net(), weight=0.7),), guess=True),
    "sd15 pooled": Case("sd15", SD, (Use(net(global_pool_conditions=True)),)),
    "sd15 two": Case("sd15", SD, (Use(net(), weight=0.6, end=0.5), Use(net(1), weight=1.2, start=0.25))),
    "sd21": Case("sd21", SD, (Use(net(), weight=0.8), Use(net(1)))),
    "sdxl": Case("sdxl", XL, (Use(net(), weight=0.8),)),
    "sdxl two": Case("sdxl", XL, (Use(net(), weight=0.8, end=0.6), Use(net(1), weight=0.5))),
    "sdxl union": Case("sdxl", XL_UNION, (Use(net(union=True), weight=0.9, mode=3),),
                       options={"control_mode": [3]}),
    "sd35": Case("sd35", SD3, (Use(sd3(), weight=0.7, end=0.75),)),
    "sd35 two": Case("sd35", SD3, (Use(sd3(), weight=0.7), Use(sd3(1), weight=0.4, start=0.5))),
    "sd35 pooled text": Case("sd35", SD3, (Use(sd3(force_zeros_for_pooled_projection=False)),)),
    "sd35 without text": Case("sd35", SD3, (Use(sd3(**SINGLE)),)),
    "flux1": Case("flux1", FLUX, (Use(flux(), weight=0.7, end=0.75),), cfg=3.5),
    "flux1 two": Case("flux1", FLUX, (Use(flux(), weight=0.7), Use(flux(1), weight=0.5, start=0.5)), cfg=3.5),
    "flux1 union": Case("flux1", FLUX, (Use(flux(num_mode=5), mode=2),), cfg=3.5,
                        options={"control_mode": 2}),
    "flux1 pixels": Case("flux1", FLUX, (Use(flux(conditioning_embedding_channels=16)),), cfg=3.5),
    "flux1 no single blocks": Case("flux1", FLUX, (Use(flux(num_single_layers=0)),), cfg=3.5),
}  # fmt: skip


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Family]:
    root, made = tmp_path_factory.mktemp("bases"), {}

    def get(name: str) -> Family:
        if name not in made:
            folder: Path = root / name
            save_base(name, folder)
            cls = FAMILIES[name].load_class()
            made[name] = cls(BaseFiles(str(folder)), dtype=torch.float32, device=torch.device("cpu"))
        return made[name]

    return get


@pytest.fixture(autouse=True)
def mean_of_the_vae(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers takes a sample of the VAE's distribution, we take its mean."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, *_: self.mean)


def maps(count: int) -> list[Any]:
    return [controls.map_picture((SIZE[1], SIZE[0]), seed) for seed in range(count)]


def steers(case: Case, models: Sequence[Any]) -> list[Steer]:
    return [
        Steer(Net(model, use.mode, use.kind), picture, None, use.weight, use.start, use.end, case.guess)
        for use, model, picture in zip(case.uses, models, maps(len(models)), strict=True)
    ]


def sources() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(SEED)]


def begun(guided: Guided) -> Pass:
    """Text to image."""
    scheduler = make_scheduler("default", guided.family.scheduler_config())
    noise = new_noise(guided.family, SIZE, sources())
    return from_noise(guided, scheduler, STEPS, noise, sources(), [])


@torch.no_grad()
def drawn(family: Family, case: Case, chosen: list[Steer]) -> Tensor:
    """Our latents."""
    negative = family.encode_text([NEGATIVE])
    guided = Guided(family, family.encode_text([PROMPT]), negative, case.cfg, SIZE)
    work = begun(guided)
    if chosen:
        work.changes = [Control(chosen)]
    return paint(work)


def expected(family: Family, case: Case, models: Sequence[Any]) -> Tensor:
    """The pipeline's latents."""
    import diffusers

    cls: Any = getattr(diffusers, case.pipeline)
    parts = {name: family.part(name) for name in (*family.parts, "scheduler") if name != "scheduler"}
    parts["scheduler"] = make_scheduler("default", family.scheduler_config())
    union = case.pipeline == XL_UNION
    parts["controlnet"] = models[0] if len(models) == 1 else list(models)
    if case.pipeline == SD:
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipe = cls(**parts)
    pipe.set_progress_bar_config(disable=True)
    noise = new_noise(family, SIZE, sources())
    pictures = maps(len(models))
    one = len(models) == 1
    options: dict[str, Any] = {
        "control_image" if case.family in ("sd35", "flux1") or union else "image": pictures[0]
        if one
        else pictures,
        "controlnet_conditioning_scale": case.uses[0].weight if one else [use.weight for use in case.uses],
        "control_guidance_start": [use.start for use in case.uses],
        "control_guidance_end": [use.end for use in case.uses],
        **case.options,
    }
    if one:
        options |= {"control_guidance_start": case.uses[0].start, "control_guidance_end": case.uses[0].end}
    if union:
        options["control_image"] = pictures
    if case.guess:
        options["guess_mode"] = True
    if case.family == "flux1":
        noise = pipe._pack_latents(noise, *noise.shape)
        options["max_sequence_length"] = family.text_length
    else:
        options["negative_prompt"] = NEGATIVE
    said = pipe(
        PROMPT, height=SIZE[0], width=SIZE[1], num_inference_steps=STEPS, latents=noise,
        guidance_scale=case.cfg, output_type="latent", return_dict=False, **options,
    )[0]  # fmt: skip
    if case.family == "flux1":
        said = pipe._unpack_latents(said, *SIZE, pipe.vae_scale_factor)
    return said


@pytest.mark.parametrize("name", CASES)
def test_the_latents_are_the_pipelines(name: str, families: Callable[[str], Family]):
    case = CASES[name]
    family = families(case.family)
    models = [use.make(family) for use in case.uses]
    for model in models:
        if getattr(model.config, "use_pos_embed", True) is False:
            model.pos_embed = model._get_pos_embed_from_transformer(family.denoiser)
    ours = drawn(family, case, steers(case, models))
    assert (ours - expected(family, case, models)).abs().max() < 1e-4
    assert (ours - drawn(family, case, [])).abs().max() > 1e-2, "it must act, or the test proves little"


@pytest.mark.parametrize(("family", "config"), [("sd15", {}), ("sd15", {"in_channels": 1}), ("sdxl", {})])
def test_t2i_adapters(family: str, config: dict[str, Any], families: Callable[[str], Family]):
    import diffusers

    loaded = families(family)
    xl = family == "sdxl"
    adapter = controls.t2i_adapter(**config, **({"adapter_type": "full_adapter_xl"} if xl else {}))
    if xl:
        adapter = controls.t2i_adapter(channels=[32, 64], adapter_type="full_adapter")
    case = Case(family, "", (Use(lambda _: adapter, weight=0.8),))
    picture = maps(1)[0]
    if config.get("in_channels") == 1:
        picture = picture.convert("L").convert("RGB")
    chosen = [Steer(Net(adapter, None, "canny"), picture, None, 0.8)]
    cls: Any = diffusers.StableDiffusionXLAdapterPipeline if xl else diffusers.StableDiffusionAdapterPipeline
    extra = (
        {} if xl else {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    )
    pipe = cls(**{name: loaded.part(name) for name in loaded.parts}, adapter=adapter,
               scheduler=make_scheduler("default", loaded.scheduler_config()), **extra)  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    said = pipe(
        PROMPT, negative_prompt=NEGATIVE, height=SIZE[0], width=SIZE[1], num_inference_steps=STEPS,
        latents=new_noise(loaded, SIZE, sources()), guidance_scale=case.cfg,
        image=picture.convert("L") if config.get("in_channels") == 1 else picture,
        adapter_conditioning_scale=0.8, output_type="latent", return_dict=False,
    )[0]  # fmt: skip
    ours = drawn(loaded, case, chosen)
    assert (ours - said).abs().max() < 1e-4
    assert (ours - drawn(loaded, case, [])).abs().max() > 1e-2


def test_weight_nothing_is_the_base_exactly(families: Callable[[str], Family]):
    family = families("sd15")
    case = CASES["sd15"]
    off = [Steer(Net(net()(family), None, "canny"), maps(1)[0], None, 0.0)]
    assert torch.equal(drawn(family, case, off), drawn(family, case, []))


@torch.no_grad()
def test_networks_of_different_depth_add_up(families: Callable[[str], Family]):
    """One with a sample for each block, one whose sample stands for all of them."""
    family = families("flux1")
    case = CASES["flux1"]
    deep, flat = controls.flux_controlnet(0, num_single_layers=2), controls.flux_controlnet(1)
    both = steers(Case("flux1", FLUX, (Use(flux()), Use(flux()))), [deep, flat])
    guided = Guided(family, family.encode_text([PROMPT]), family.encode_text([NEGATIVE]), case.cfg, SIZE)
    work = begun(guided)
    said: list[Any] = []
    for chosen in (both, both[:1], both[1:]):
        control = Control(chosen)
        control.begin(work)
        said.append(control.before(0, work.timesteps[0], work.latents))
    for key, blocks in (("controlnet_block_samples", 1), ("controlnet_single_block_samples", 2)):
        assert len(said[0][key]) == blocks
        for together, one, other in zip(*(part[key] for part in said), strict=True):
            torch.testing.assert_close(together, one + other)


def test_a_hole_is_minus_one(families: Callable[[str], Family]):
    from PIL import Image

    from studio.sampling.control.steering import map_pixels

    family = families("sd15")
    hole = Image.new("L", (24, 32))
    hole.paste(255, (8, 8, 16, 16))
    steer = Steer(Net(None, None, "inpaint"), Image.new("RGB", (24, 32), (255, 0, 0)), hole)
    pixels = map_pixels(steer, family)
    assert torch.equal(pixels[0, :, 10, 10], torch.full((3,), -1.0))
    assert torch.equal(pixels[0, :, 0, 0], torch.tensor([1.0, 0.0, 0.0]))
