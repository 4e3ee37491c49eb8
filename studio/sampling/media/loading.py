"""Pipelines of diffusers that make video, sound and 3D, loaded whole. Only the sampler imports this."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch

from registry.errors import BadInput
from studio.sampling.media.kinds import KINDS, Kind
from studio.sampling.task import SampleTask, TaskBase
from trainers.families import FAMILIES
from trainers.families.base import BaseFiles

RESIDENT_SHARE = 0.6  # of the free memory that weights may take and stay there: the rest is for frames
FEWEST_WORDS = 10  # of a tokenizer: from a folder without words the library makes one of two or three
# What AnimateDiff was trained with; a base's own noise is another one (diffusers' guide says the same).
_MOTION_NOISE = {
    "beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False,
    "timestep_spacing": "linspace", "steps_offset": 1,
}  # fmt: skip


@dataclass
class LoadedPipeline:
    """A pipeline in memory."""

    kind: Kind
    pipe: Any
    bytes: int
    mode: str  # of `requests.MEMORY`, but for "auto"
    pieces: bool = False  # decodes in small pieces

    @property
    def models(self) -> list[torch.nn.Module]:
        """Its components that compute."""
        return [part for part in self.pipe.components.values() if isinstance(part, torch.nn.Module)]


def load_pipeline(task: SampleTask, device: torch.device) -> LoadedPipeline:
    """Everything that a task needs, in the main memory; `place` brings it to the device.

    Raises:
        BadInput: it cannot be loaded; says why in one line.
    """
    kind = KINDS[task.request.kind]
    dtype = torch.float16 if kind.half and device.type == "cuda" else torch.float32
    try:
        pipe = _moving(task, dtype) if task.motion else _whole(task.base, dtype)
    except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200].rstrip(". ")
        wrong = f"cannot be loaded ({reason})"
        raise BadInput(f"base {task.base.name}", wrong, "check its folder, or get the model again") from error
    pipe.set_progress_bar_config(disable=True)
    for name, part in pipe.components.items():
        if "Tokenizer" in type(part).__name__ and len(part) < FEWEST_WORDS:
            wrong = f"has a {name} of {len(part)} words"
            raise BadInput(f"base {task.base.name}", wrong, "copy that folder of the original model there")
    loaded = LoadedPipeline(kind, pipe, 0, "fast")
    loaded.bytes = sum(p.numel() * p.element_size() for part in loaded.models for p in part.parameters())
    return loaded


def place(
    loaded: LoadedPipeline, wanted: str, device: torch.device, free: int, *, pieces: bool = False
) -> None:
    """Bring a freshly loaded pipeline to the device.

    Args:
        loaded: The pipeline.
        wanted: The request's `memory`.
        device: Where it computes.
        free: Bytes of the device that may be used.
        pieces: Decode in small pieces, after memory ran out.
    """
    pipe = loaded.pipe
    mode = "fast" if loaded.bytes <= RESIDENT_SHARE * free else "model"
    loaded.mode = mode if wanted == "auto" else wanted
    if device.type == "cpu":  # there is no second memory to wait in
        loaded.mode = "fast"
    elif loaded.mode == "fast":
        pipe.to(device)
    elif loaded.mode == "model":
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.enable_sequential_cpu_offload(device=device)
    loaded.pieces = pieces
    vae: Any = getattr(pipe, "vae", None)
    if pieces and hasattr(vae, "use_slicing"):
        vae.enable_slicing()


def _whole(base: TaskBase, dtype: torch.dtype) -> Any:
    """A folder with a model_index.json."""
    from diffusers import DiffusionPipeline

    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True}
    if base.kind == "hub":
        options["revision"] = base.revision or None
    else:
        if code := next(Path(base.location).rglob("*.py"), None):
            raise BadInput(str(code), "a base may not bring code", "remove the file if you do not need it")
        options |= {"local_files_only": True, **_variant(Path(base.location))}
    pipe: Any = DiffusionPipeline.from_pretrained(base.location, **options)
    _complete(pipe)
    return pipe


def _complete(pipe: Any) -> None:
    """AudioLDM 2 was published with GPT-2's bare model; the pipeline asks for the one with a head since
    transformers 5, for a method of it. The head itself is never used.
    """
    bare = getattr(pipe, "language_model", None)
    if bare is None or hasattr(bare, "_update_model_kwargs_for_generation"):
        return
    from transformers.models.gpt2.modeling_gpt2 import GPT2LMHeadModel

    with torch.device("meta"):
        whole = GPT2LMHeadModel(bare.config)
    whole.transformer = bare
    whole.lm_head = torch.nn.Linear(bare.config.n_embd, 1, bias=False, dtype=bare.dtype)
    pipe.register_modules(language_model=whole.eval())


def _moving(task: SampleTask, dtype: torch.dtype) -> Any:
    """A base for pictures with a motion adapter."""
    from diffusers.models.unets.unet_motion_model import MotionAdapter
    from diffusers.pipelines.animatediff.pipeline_animatediff import AnimateDiffPipeline
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    base, motion = task.base, task.motion
    assert motion is not None
    kind = cast(Literal["folder", "file", "hub"], base.kind)
    files = BaseFiles(base.location, kind, base.config, base.revision)
    family = FAMILIES[base.family].load_class()(files, dtype=dtype, device=torch.device("cpu"))
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True}
    if motion.kind == "hub":
        options["revision"] = motion.revision or None
    else:
        options |= {"local_files_only": True, **_variant(Path(motion.location))}
    adapter = MotionAdapter.from_pretrained(motion.location, **options)
    scheduler: Any = DDIMScheduler.from_config(family.scheduler_config() | _MOTION_NOISE)
    return AnimateDiffPipeline(
        vae=family.part("vae").to(dtype),
        text_encoder=family.part("text_encoder"),
        tokenizer=family.part("tokenizer"),
        unet=family.part("unet"),
        motion_adapter=adapter,
        scheduler=scheduler,
    )


def _variant(folder: Path) -> dict[str, str]:
    """Folders that carry only half precision files name them *.fp16.safetensors."""
    files = [file.name for file in folder.rglob("*.safetensors")]
    return {"variant": "fp16"} if files and all(".fp16." in file for file in files) else {}
