"""A request on a toy base, drawn by the engine and by diffusers' own pipeline from the same seed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from studio.sampling.engine import Drawn, Engine
from studio.sampling.request import SampleRequest
from studio.sampling.schedulers import make_scheduler
from studio.sampling.task import SampleTask, TaskBase
from trainers.families import FAMILIES
from trainers.families.base import BaseFiles, Family

SIZE, SEED = (32, 24), 11  # (height, width)
PROMPT = "a red circle"
CPU = torch.device("cpu")


def picture(size: tuple[int, int] = SIZE, seed: int = 0) -> Image.Image:
    """A smooth picture of (height, width)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC)


def mask(size: tuple[int, int] = SIZE) -> Image.Image:
    """White in the middle, its edges not on latent cells."""
    made = Image.new("L", (size[1], size[0]), 0)
    made.paste(255, (7, 9, size[1] - 6, size[0] - 5))
    return made


def saved(image: Image.Image, path: Path) -> str:
    """The file's path, as a request has it."""
    image.save(path)
    return str(path)


def task(family: str, folder: Path, *, refiner: Path | None = None, **fields: Any) -> SampleTask:
    """A request to a base folder."""
    values = {"prompt": PROMPT, "steps": 5, "seed": SEED, "width": SIZE[1], "height": SIZE[0], "cfg": 5.0}
    request = SampleRequest(base="b", **values | fields)
    return SampleTask(
        id="s",
        request=request,
        base=_base(family, folder),
        refiner=_base(family, refiner) if refiner else None,
    )


def drawn(wanted: SampleTask, engine: Engine | None = None) -> tuple[list[Image.Image], Drawn]:
    """The pictures and what is said about them."""
    pictures: list[Image.Image] = []
    engine = engine or _loaded("engine", Path(), lambda: Engine(device="cpu"))
    said = engine.draw(wanted, keep=lambda _, one, __: pictures.append(one))
    return pictures, said


def floats(wanted: SampleTask, engine: Engine | None = None) -> Tensor:
    """The last decoded picture before it is rounded to bytes, (1, 3, H, W) from 0 to 1."""
    with decoded() as kept:
        drawn(wanted, engine)
    return kept[-1]


@contextmanager
def loaded_once() -> Iterator[None]:
    """Meanwhile the folders stay as they are: one engine draws all, and each base is loaded once a reader."""
    global _kept
    _kept = {}
    try:
        yield
    finally:
        _kept = None


_kept: dict[tuple[str, Path], Any] | None = None  # what was loaded, by reader and folder


def _loaded(reader: str, folder: Path, load: Callable[[], Any]) -> Any:
    if _kept is None:
        return load()
    if (reader, folder) not in _kept:
        _kept[reader, folder] = load()
    return _kept[reader, folder]


@contextmanager
def decoded() -> Iterator[list[Tensor]]:
    """Every picture that is decoded meanwhile, (1, 3, H, W) from 0 to 1."""
    from studio.sampling import drawing

    kept: list[Tensor] = []
    real = drawing.to_picture

    def keep(pixels: Tensor) -> Image.Image:
        kept.append(unit(pixels))
        return real(pixels)

    with mock.patch.object(drawing, "to_picture", keep):
        yield kept


def unit(pixels: Tensor) -> Tensor:
    """[-1, 1] -> 0 to 1."""
    return (pixels.float().clamp(-1, 1) + 1) / 2


def family_of(name: str, folder: Path) -> Family:
    """The family's own object for a folder."""
    return _loaded(
        name,
        folder,
        lambda: FAMILIES[name].load_class()(BaseFiles(str(folder)), dtype=torch.float32, device=CPU),
    )


def pipeline(cls: str, folder: Path, scheduler: str = "default") -> Any:
    """A pipeline of diffusers by the name of its class."""
    import diffusers

    options = {"safety_checker": None} if cls.startswith("StableDiffusion") and "XL" not in cls else {}
    if "3" in cls:
        options = {}
    load = getattr(diffusers, cls).from_pretrained
    pipe: Any = _loaded(cls, folder, lambda: load(folder, local_files_only=True, **options))
    pipe.set_progress_bar_config(disable=True)
    own = _loaded(f"{cls}, scheduler", folder, lambda: pipe.scheduler)
    pipe.scheduler = make_scheduler(scheduler, dict(own.config), seeds=[SEED])
    return pipe


def theirs(pipe: Any, family: Family, **options: Any) -> Tensor:
    """What a pipeline draws with our seed, decoded by us: (1, 3, H, W) from 0 to 1.

    Decoded by us because SD3's inpainting pipeline leaves out the VAE's shift.
    """
    values: dict[str, Any] = {
        "prompt": PROMPT, "num_inference_steps": 5, "output_type": "latent",
        "generator": torch.Generator().manual_seed(SEED), "guidance_scale": 5.0,
    }  # fmt: skip
    if family.name == "flux1":
        values["max_sequence_length"] = family.text_length  # type: ignore[attr-defined]
    with torch.no_grad():
        latents = pipe(**values | options).images
        if latents.ndim == 3:
            latents = pipe._unpack_latents(latents, *SIZE, pipe.vae_scale_factor)
        return unit(family.decode_image(latents))


def _base(family: str, folder: Path) -> TaskBase:
    return TaskBase(id="b", name="b", family=family, location=str(folder), kind="folder")
