"""How well the pocket base does what prompts say: `python -m studio.pocket.check [--model DIR]`."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from registry.errors import NotFound, StudioError
from studio.pocket.checker import Fidelity, fidelity
from studio.pocket.grammar import Scene, caption, evaluation_scenes

MODEL = Path(__file__).parent / "model"
STEPS, GUIDANCE = 20, 4.0
BATCH = 32


def measure(pipe: Any, scenes: list[Scene], seed: int = 0) -> Fidelity:
    """Draw every scene's plain caption with a pipeline (DDIM, 20 steps, guidance 4) and read the pictures."""
    import torch

    pictures: list[Any] = []
    for start in range(0, len(scenes), BATCH):
        part = scenes[start : start + BATCH]
        seeds = [torch.Generator().manual_seed(seed * 1000 + start + place) for place in range(len(part))]
        prompts = [caption(scene) for scene in part]
        pictures += pipe(prompts, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=seeds).images
    return fidelity(pictures, scenes)


def load(model: Path) -> Any:
    """The pipeline in a diffusers folder, in fp32, on the GPU when there is one."""
    import torch
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(model, dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to("cuda" if torch.cuda.is_available() else "cpu")


def in_words(result: Fidelity) -> str:
    """One line of percentages."""
    return ", ".join(f"{name} {share:.1%}" for name, share in asdict(result).items())


def main(arguments: list[str] | None = None) -> int:
    """Print the fidelity of a model on held-out prompts."""
    parser = argparse.ArgumentParser(prog="python -m studio.pocket.check", description=__doc__)
    parser.add_argument(
        "--model", type=Path, default=MODEL, help="a diffusers folder; default: the shipped base"
    )
    parser.add_argument("--prompts", type=int, default=64, help="how many held-out prompts")
    options = parser.parse_args(arguments)
    if not (options.model / "model_index.json").exists():
        raise NotFound(str(options.model), "is no diffusers folder", "give the folder with model_index.json")
    result = measure(load(options.model), evaluation_scenes(options.prompts))
    sys.stdout.write(f"{options.prompts} held-out prompts: {in_words(result)}\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except StudioError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
