"""Pictures of the class, drawn by the base before training (Ruiz et al. 2022, "DreamBooth", sec. 3.3).

    <cache>/class/<hash of base, prompt and sampling>/000.png, 001.png, ...

The seed of a picture is its number, so a drawing that was interrupted goes on where it was, a run that wants
more adds to what is there, and runs of the same class share them.
"""

import logging
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image, UnidentifiedImageError

from registry.errors import StudioError
from registry.files import atomic_path
from registry.hashing import hash_json
from trainers.base_weights import Keeping, choose, load_part
from trainers.preview import sample, to_image
from trainers.priors import CLASS
from trainers.recipe_fields import PreviewSection
from trainers.rundir import ManifestItem

if TYPE_CHECKING:
    from trainers.setup import Setting

log = logging.getLogger(__name__)


def class_pictures(setting: "Setting") -> list[ManifestItem]:
    """The class pictures that the recipe asks for; those that are missing or damaged get drawn.

    Raises:
        StudioError: the base draws values that are not finite.
        Stopped: asked to stop meanwhile; what was drawn stays.
    """
    section = setting.recipe.preservation
    if section.mode != "class_pictures":
        return []
    side = class_side(setting)
    folder = setting.cache / "class" / class_key(setting, side)
    paths = [folder / f"{number:03d}.png" for number in range(section.count)]
    with setting.first_process_first():
        missing = [number for number, path in enumerate(paths) if not _hash(path, side)]
        if missing and setting.writes:
            _draw(setting, [paths[number] for number in missing], missing, side)
    return [
        ManifestItem(
            image=str(path),
            pixel_hash=_hash(path, side),
            width=side,
            height=side,
            caption=section.class_prompt.strip(),
            name=f"class picture {path.stem}",
            weight=section.loss_weight,
            role=CLASS,
        )
        for path in paths
    ]


def class_side(setting: "Setting") -> int:
    """Side in pixels of the square pictures: the largest resolution, rounded down to what fits a bucket."""
    step = setting.recipe.data.bucket_step or setting.family.bucket_multiple
    return max(step, setting.recipe.train.sizes[-1] // step * step)


def class_key(setting: "Setting", side: int) -> str:
    """Hash of everything a class picture depends on, but for its number."""
    section, family = setting.recipe.preservation, setting.family
    names = sorted(family.parts)
    base = setting.env.base_hash or [family.component_hash(name, setting.memo) for name in names]
    kept = {name: keeping.precision for name, keeping in _keepings(setting).items()}
    rounded = {name: precision for name, precision in kept.items() if precision != "whole"}
    return hash_json(
        {
            "base": base,
            **({"weights": rounded} if rounded else {}),
            "dtype": str(family.dtype),
            "prompt": section.class_prompt.strip(),
            "side": side,
            "steps": section.steps,
            "cfg": guidance_scale(setting),
            "scheduler": section.scheduler,
        }
    )


def guidance_scale(setting: "Setting") -> float:
    """The recipe's own, or that of the previews: 7 is too much for FLUX.1, which its presets know."""
    recipe = setting.recipe
    return recipe.preview.cfg if recipe.preservation.cfg is None else recipe.preservation.cfg


def _keepings(setting: "Setting") -> dict[str, Keeping]:
    """How the weights of the large parts are kept: they are no smaller here than in training."""
    family, train = setting.family, setting.recipe.train
    large = [name for name in (family.t5_encoder,) if name in family.text_encoder_names]
    kept = {name: choose(family, name, train) for name in (*large, family.denoiser_name)}
    if kept[family.denoiser_name].sharded:
        # One process draws while the others wait, so it cannot share the base with them: it streams it, or
        # where that is off keeps it as it would have to without the others.
        keeping = Keeping(streamed=True)
        if train.base_streaming == "off":
            keeping = choose(family, family.denoiser_name, train.model_copy(update={"base_sharding": "off"}))
        kept[family.denoiser_name] = keeping
    return kept


def _draw(setting: "Setting", paths: list[Path], numbers: list[int], side: int) -> None:
    """One picture after the other, so that none depends on how many are drawn at once."""
    section, family = setting.recipe.preservation, setting.family
    setting.reporter.phase("class pictures", len(paths))
    keepings = _keepings(setting)
    how = PreviewSection(steps=section.steps, cfg=guidance_scale(setting), scheduler=section.scheduler)
    if family.t5_encoder in keepings:
        load_part(family, family.t5_encoder, keepings[family.t5_encoder])
    cond, empty = (family.encode_text([text]) for text in (section.class_prompt.strip(), ""))
    negative = family.unguided(empty)
    family.free(*family.text_encoder_names)
    load_part(family, family.denoiser_name, keepings[family.denoiser_name])
    channels = int(family.config("vae")["latent_channels"])
    cells = side // family.latent_factor
    for done, (path, number) in enumerate(zip(paths, numbers, strict=True)):
        generator = torch.Generator().manual_seed(number)
        noise = torch.randn(1, channels, cells, cells, generator=generator)
        with torch.no_grad(), torch.random.fork_rng():
            with setting.accelerator.autocast():
                latents = sample(family, how, cond, negative, noise, generator)
            pixels = family.decode_image(latents)[0]
        if not pixels.isfinite().all():
            raise StudioError(
                f"class picture {number}", "is not finite", "set train.precision to bf16 or fp32"
            )
        with atomic_path(path, durable=False) as temporary:
            to_image(pixels).save(temporary, "PNG")
        setting.progress(done + 1, len(paths))
    family.free(family.denoiser_name)  # the caches come first; it is loaded again when they are done


def _hash(path: Path, side: int) -> str:
    """Hash of a picture's pixels; "" when it is missing, damaged or of another size."""
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            if picture.size == (side, side):
                return sha256(picture.convert("RGB").tobytes()).hexdigest()
            log.warning("class picture %s has another size; drawing it again", path.name)
    except FileNotFoundError:
        pass
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
        log.warning("class picture %s is damaged (%s); drawing it again", path.name, error)
    return ""
