"""Making video, sound and 3D with a loaded pipeline; only the sampler process imports this.

Each is made by itself from its own seed: the pipelines draw their noise from a CPU generator, and what a
library takes from torch's global one (the rays of Shap-E) is seeded too, so the same request gives the same
bytes on the same machine.
"""

import copy
import functools
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from registry.errors import BadInput, StudioError
from studio.sampling.canvas import fit
from studio.sampling.media.kinds import SOUND, THING, VIDEO, word_of
from studio.sampling.media.loading import LoadedPipeline
from studio.sampling.media.made import Film, Made, Mesh, Sound, Thing
from studio.sampling.painting import Cancelled
from studio.sampling.progress import Progress
from studio.sampling.request import SampleRequest
from studio.sampling.task import SampleTask

RAYS = 4096  # that Shap-E follows at once; it leaves out what is over, so it has to divide them all
SEEDS = 2**32
DEEP = 2  # levels of a model down to its blocks: asking costs a microsecond for each of their calls
NO_SURFACE = "No mesh was written: what was made has no surface."


@dataclass
class Making:
    """One request.

    Args:
        task: Its files are real paths.
        loaded: The pipeline.
        device: Where it computes.
        say: Takes progress, after every step.
        cancelled: Asked whenever a part of the pipeline is called: more often than every step.
    """

    task: SampleTask
    loaded: LoadedPipeline
    device: torch.device
    say: Callable[[Progress], None]
    cancelled: Callable[[], bool]
    notes: list[str] = field(default_factory=list[str])  # about what was made

    def make(self, index: int) -> Made:
        """Number `index` of the request.

        Raises:
            Cancelled: `cancelled()` was true.
            BadInput: the pipeline refuses the request.
            StudioError: what came out is not finite.
        """
        kind = self.loaded.kind
        seed = (self.task.request.seed + index) % SEEDS
        gpus = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=gpus), torch.no_grad(), self._watched(index):
            torch.manual_seed(seed)
            try:
                output = self.loaded.pipe(**self._arguments(seed))
            except ValueError as error:  # what the pipeline itself checks
                reason = str(error).splitlines()[0][:200].rstrip(". ")
                raise BadInput(
                    f"base {self.task.base.name}", reason or "refuses", "change the request"
                ) from error
            self.say(self._progress("decoding", index, self.task.request.steps))
            return MAKERS[kind.medium](self, output)

    def warnings(self) -> list[str]:
        """What a person should know about what was made: also texts that are longer than what reads them."""
        found = list(dict.fromkeys(self.notes))
        for name, part in self.loaded.pipe.components.items():
            if "Tokenizer" not in type(part).__name__:
                continue
            for text in (self.task.request.prompt, self.task.request.negative):
                count, most = len(part(text)["input_ids"]), part.model_max_length
                if text and count > most:
                    found.append(f"The {name} reads {most} tokens: {count - most} at the end do not count.")
        return found

    def _arguments(self, seed: int) -> dict[str, Any]:
        request, kind = self.task.request, self.loaded.kind
        values: dict[str, Any] = {
            "num_inference_steps": request.steps,
            kind.guidance: request.cfg,
            "generator": torch.Generator().manual_seed(seed),
            **kind.fixed,
        }
        if self.loaded.pieces:
            values |= kind.small
        if "prompt" in kind.takes:
            values["prompt"] = request.prompt
        if "negative" in kind.takes and request.negative:
            values["negative_prompt"] = request.negative
        if kind.sized:
            values |= {"width": request.width, "height": request.height}
        if "image" in kind.takes:
            values["image"] = self._picture()
        for item in kind.settings:
            if item.argument and item.name in request.settings:
                value = request.settings[item.name]
                values[item.argument] = int(value) if item.whole else float(value)
        return values

    def _picture(self) -> Image.Image:
        request = self.task.request
        with Image.open(self.task.file(request.image)) as opened:
            picture = opened.convert("RGB")
        return fit(picture, (request.width, request.height)) if self.loaded.kind.sized else picture

    def _progress(self, phase: str, index: int, step: int) -> Progress:
        request = self.task.request
        return Progress(phase, step, request.steps, index + 1, request.count)

    @contextmanager
    def _watched(self, index: int) -> Generator[None]:
        """Progress at every step of the scheduler, which no pipeline shares with the one before."""
        pipe, steps, done = self.loaded.pipe, self.task.request.steps, 0
        own = pipe.scheduler
        scheduler = copy.deepcopy(own)
        step = scheduler.step

        @functools.wraps(step)  # pipelines look at its parameters
        def counted(*args: Any, **options: Any) -> Any:
            nonlocal done
            self._check()
            done += 1
            result = step(*args, **options)
            every = max(1, len(scheduler.timesteps))  # some ask the denoiser twice a step
            self.say(self._progress("drawing", index, min(steps, done * steps // every)))
            return result

        scheduler.step = counted
        pipe.scheduler = scheduler
        modules = [
            part
            for model in self.loaded.models
            for name, part in model.named_modules()
            if name.count(".") < DEEP
        ]
        hooks = [part.register_forward_pre_hook(lambda *_: self._check()) for part in modules]
        try:
            self._check()
            yield
        finally:
            for hook in hooks:
                hook.remove()
            pipe.scheduler = own

    def _check(self) -> None:
        if self.cancelled():
            raise Cancelled


def _film(making: Making, output: Any) -> Film:
    """Frames of (1, F, H, W, 3), 0 to 1."""
    return Film(_frames(output.frames[0], making.task.request), making.task.request.settings["fps"])


def _sound(making: Making, output: Any) -> Sound:
    """(1, samples) or (1, channels, samples), -1 to 1."""
    component, key = making.loaded.kind.rate
    samples = np.atleast_2d(np.asarray(output.audios[0], dtype=np.float32))
    _require_finite(samples, making.task.request)
    rate = getattr(making.loaded.pipe, component).config
    return Sound(samples, int(getattr(rate, key)))


def _thing(making: Making, output: Any) -> Thing:
    """What Shap-E's renderer sees from all sides, and its surface."""
    request, renderer = making.task.request, making.loaded.pipe.shap_e_renderer
    settings = {name: int(value) for name, value in request.settings.items()}
    latents, side, samples = output.images[:1], settings["side"], settings["samples"]
    device = making.device
    seen = renderer.decode_to_image(
        latents, device, size=side, ray_batch_size=RAYS, n_coarse_samples=samples, n_fine_samples=2 * samples
    )
    film = Film(_frames(seen.float().cpu().numpy(), request), settings["fps"])
    mesh = _mesh(renderer, latents, device, settings["grid"]) if settings["grid"] else None
    if settings["grid"] and mesh is None:
        making.notes.append(NO_SURFACE)
    return Thing(film, mesh)


def _mesh(renderer: Any, latents: torch.Tensor, device: torch.device, grid: int) -> Mesh | None:
    """The surface; None where nothing has an inside."""
    try:
        found = renderer.decode_to_mesh(latents, device, grid_size=grid)
    except ValueError:  # the library joins the colours of no points
        return None
    colours = torch.stack([found.vertex_channels[name] for name in "RGB"], dim=-1)
    return Mesh(
        found.verts.float().cpu().numpy(),
        _bytes(colours.float().cpu().numpy()),
        found.faces.cpu().numpy().astype(np.int32),
    )


MAKERS: dict[str, Callable[[Making, Any], Made]] = {VIDEO: _film, SOUND: _sound, THING: _thing}


def _frames(values: Any, request: SampleRequest) -> np.ndarray:
    """(F, H, W, 3) of 0 to 1 as bytes."""
    frames = np.asarray(values, dtype=np.float32)
    _require_finite(frames, request)
    return _bytes(frames)


def _bytes(values: np.ndarray) -> np.ndarray:
    return (values.clip(0, 1) * 255).round().astype(np.uint8)


def _require_finite(values: np.ndarray, request: SampleRequest) -> None:
    if not np.isfinite(values).all():
        do = "try other settings, or get the model again"
        raise StudioError(f"the {word_of(request.kind)}", "came out not finite (NaN)", do)
