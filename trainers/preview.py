"""Pictures drawn while training: same prompts, same noise, with the adapter as it would be saved, and
without.

A preview never touches a run's random numbers, and never breaks it, but where memory ends on a process that
shares the base with others: these wait for it in the middle of a pass.
"""

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from registry.files import append_line, atomic_path
from trainers.base_pictures import BasePictures
from trainers.checkpoints import Learning
from trainers.families.base import Conditioning, Family
from trainers.guards import is_memory
from trainers.guidance import Guided, begin, first_latents, is_flow
from trainers.metrics import Reporter
from trainers.recipe_fields import PreviewSection
from trainers.rundir import PREVIEW_INDEX, PREVIEWS, RunDir
from trainers.sharing import APART, Together

log = logging.getLogger(__name__)

SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIM": ("DDIMScheduler", {}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}),
    "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "UniPC": ("UniPCMultistepScheduler", {}),
}


@dataclass(frozen=True)
class Previewer:
    """Draws the recipe's prompts.

    Args:
        rundir: Pictures go to its previews folder.
        section: The preview section of the recipe.
        family: With the adapter attached and the VAE loaded.
        learning: The running mean is what is drawn.
        encode: Prompts -> conditioning on the device; from the cache, or live when the text encoder learns.
        prompts: With the trigger in place.
        negative: Likewise.
        size: (height, width) in pixels, multiples of the latent factor.
        autocast: Precision of the run.
        reporter: Learns of failures.
        schedule: Scheduler config of the noise that is trained on.
        kept: Where pictures of the base alone are kept for later runs; None where the base is not the same
            below the adapter.
        together: Processes that share the base draw together, and the first one writes.
    """

    rundir: RunDir
    section: PreviewSection
    family: Family
    learning: Learning
    encode: Callable[[list[str]], Conditioning]
    prompts: Sequence[str]
    negative: str
    size: tuple[int, int]
    autocast: Callable[[], AbstractContextManager[None]]
    reporter: Reporter
    schedule: Mapping[str, Any]
    kept: BasePictures | None = None
    together: Together = APART

    def due(self, step: int, last: int) -> bool:
        """Every `preview.every` steps, before the first and after the last."""
        return self.section.every > 0 and (step % self.section.every == 0 or step == last)

    def draw(self, step: int) -> None:
        """Pictures of `step`, and of the base if there are none yet; what is there stays."""
        self.reporter.phase("preview", 2 * len(self.prompts))
        there, based = self.together.agreed(self._drawn() if self.together.writes else None)
        try:
            quiet = self.learning.trainables.evaluating()
            with torch.no_grad(), torch.random.fork_rng(), self.learning.ema.applied(), quiet:
                for index, prompt in enumerate(self.prompts):
                    picture, again = None, True
                    if prompt not in based and (step == 0 or self.learning.trainables.separable):
                        with self.learning.trainables.disabled():
                            picture = self._base_picture(index)
                        self._keep(picture, f"base-p{index}.png", step, prompt, base=True)
                        again = step > 0
                    if (step, prompt) not in there:
                        if again or not self._is_base(index):
                            picture = self._picture(index)
                        self._keep(picture, f"step-{step:06d}-p{index}.png", step, prompt, base=False)
                    self.reporter.progress(2 * index + 2, 2 * len(self.prompts))
        except Exception as error:  # out of memory, a sampler's quirk, a full disk: the run is worth more
            self._failed(error)
            if self.together.shared and is_memory(error):
                raise
            if self.family.device.type == "cuda":
                torch.cuda.empty_cache()

    def _failed(self, error: Exception) -> None:
        log.warning("preview failed", exc_info=error)
        self.reporter.warn(f"previews fail: {type(error).__name__}: {str(error)[:200]}")

    def _drawn(self) -> tuple[set[tuple[int, str]], set[str]]:
        """(step, prompt) of pictures that are there already, and prompts of those of the base."""
        lines = self.rundir.previews()
        own = {(line["step"], line["prompt"]) for line in lines if not line.get("base")}
        return own, {line["prompt"] for line in lines if line.get("base")}

    def _base_picture(self, index: int) -> Image.Image | None:
        """Of the base alone: drawn once by all runs of a workspace, where that can be."""
        if self.kept is None:
            return self._picture(index)
        path = self.kept.path(self.section.seed + index, self.size, *self._texts(index))
        picture = self.kept.read(path) if self.together.writes else None
        if not self.together.agreed(picture is not None):
            picture = self._picture(index)
            if picture is not None:
                self.kept.write(path, picture)
        return picture

    def _is_base(self, index: int) -> bool:
        """Whether the first answer is the base's to the bit, as with an adapter that is zero yet."""
        with self.learning.trainables.disabled():
            base = self._latents(index, most=1)
        same = torch.equal(base, self._latents(index, most=1))
        return bool(self.together.agreed(same))

    def _picture(self, index: int) -> Image.Image | None:
        """None on all processes but the first, and where that one fails at it."""
        latents = self._latents(index)

        def decoded() -> Image.Image:
            return to_image(self.family.decode_image(latents)[0])

        return self.together.alone(decoded, self._failed)

    def _texts(self, index: int) -> tuple[Conditioning, Conditioning]:
        cond, negative = self.encode([self.prompts[index]]), self.encode([self.negative])
        return cond, negative if self.negative else self.family.unguided(negative)

    def _latents(self, index: int, most: int | None = None) -> Tensor:
        """(1, C, h, w), scaled; `most`: of the sampler's steps."""
        height, width = (side // self.family.latent_factor for side in self.size)
        channels = int(self.family.config("vae")["latent_channels"])
        generator = torch.Generator().manual_seed(self.section.seed + index)
        noise = torch.randn(1, channels, height, width, generator=generator)
        cond, negative = self._texts(index)
        family, section = self.family, self.section
        with self.autocast():
            return sample(
                family, section, cond, negative, noise, generator, schedule=self.schedule, most=most
            )

    def _keep(self, picture: Image.Image | None, name: str, step: int, prompt: str, *, base: bool) -> None:
        if picture is None:
            return

        def write() -> None:
            with atomic_path(self.rundir.file(PREVIEWS) / name, durable=False) as temporary:
                picture.save(temporary, "PNG")
            line = {"step": step, "prompt": prompt, "file": f"{PREVIEWS}/{name}", "base": base}
            append_line(self.rundir.file(PREVIEW_INDEX), line)

        self.together.alone(write, self._failed)


def sample(
    family: Family,
    section: PreviewSection,
    cond: Conditioning,
    negative: Conditioning,
    noise: Tensor,
    generator: torch.Generator,
    *,
    schedule: Mapping[str, Any] | None = None,
    most: int | None = None,
) -> Tensor:
    """Noise (1, C, h, w) -> latents (1, C, h, w), scaled; guidance as the base takes it, see `guidance`.

    With `most` that many of the steps.
    """
    scheduler = make_sampler(family, section.scheduler, schedule)
    scheduler = begin(family, scheduler, section.steps, noise.shape)
    size = noise.shape[-2] * family.latent_factor, noise.shape[-1] * family.latent_factor
    guided = Guided(family, cond, negative, section.cfg, size)
    options: dict[str, Any] = {}
    if "generator" in inspect.signature(scheduler.step).parameters:
        options["generator"] = generator
    x = first_latents(scheduler, noise.to(family.device))
    for t in scheduler.timesteps[:most]:
        x = scheduler.step(guided.predict(scheduler, x, t), t, x, return_dict=False, **options)[0]
    return x


def make_sampler(family: Family, name: str, schedule: Mapping[str, Any] | None = None) -> Any:
    """The base's own sampler, or one of `SAMPLERS`, with the base's noise schedule or the given one.

    Flow matching has its own samplers: such a base keeps the one it brings.
    """
    config = family.scheduler_config() if schedule is None else dict(schedule)
    own: tuple[str, dict[str, Any]] = (config["_class_name"], {})
    class_name, overrides = own if is_flow(own[0]) else SAMPLERS.get(name, own)
    return getattr(import_module("diffusers"), class_name).from_config(config, **overrides)


def to_image(pixels: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] -> picture."""
    array = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array)


def preview_size(section: PreviewSection, resolution: int, multiple: int) -> tuple[int, int]:
    """(height, width) in pixels, rounded down to `multiple`."""
    width, height = (int(side) for side in (section.size or f"{resolution}x{resolution}").split("x"))
    return max(multiple, height // multiple * multiple), max(multiple, width // multiple * multiple)


def rewind_previews(rundir: RunDir, step: int) -> None:
    """Forget pictures after `step`; the attempt that begins there draws them anew."""
    from trainers.metrics import keep_lines

    lines = rundir.previews()
    kept = [line for line in lines if line.get("base") or line["step"] <= step]
    if len(kept) < len(lines):
        keep_lines(rundir.file(PREVIEW_INDEX), kept)
        for line in lines:
            if line not in kept:
                Path(rundir.path / line["file"]).unlink(missing_ok=True)
