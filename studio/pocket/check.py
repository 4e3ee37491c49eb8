"""How well a pocket base does what prompts say: `python -m studio.pocket.check [--model DIR]`."""

import argparse
import random
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from registry.errors import NotFound
from studio.pocket.checker import Fidelity, fidelity
from studio.pocket.command import end_with
from studio.pocket.grammar import Scene, caption, evaluation_scenes
from studio.pocket.stray import made_up

MODEL = Path(__file__).parent / "model"
STEPS, GUIDANCE = 20, 4.0
BATCH = 64
SIDE = 64  # pixels
COLUMNS, CELL, TEXT = 8, 128, 40  # of a contact sheet: pictures in a row, side and lines below in pixels
LETTERS, LINES = 21, 3  # that fit below a picture


def draw(pipe: Any, scenes: list[Scene], seed: int = 0, *, stray: bool = False) -> list[Image.Image]:
    """Pictures of the scenes' plain captions by a pipeline of any family (own sampler, 20 steps, guidance 4).

    `stray`: with a made-up word behind each.
    """
    import torch

    rng = random.Random(seed)
    prompts = [f"{caption(scene)}, {made_up(rng)}" if stray else caption(scene) for scene in scenes]
    pictures: list[Image.Image] = []
    for start in range(0, len(scenes), BATCH):
        part = prompts[start : start + BATCH]
        seeds = [torch.Generator().manual_seed(seed * 1000 + start + place) for place in range(len(part))]
        said = pipe(
            part, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=seeds, height=SIDE,
            width=SIDE, **_own_options(pipe),
        )  # fmt: skip
        pictures += said.images
    return pictures


def load(model: Path) -> Any:
    """The pipeline in a diffusers folder, whatever its family, in fp32, on the GPU when there is one."""
    import torch
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(model, dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to("cuda" if torch.cuda.is_available() else "cpu")


def contact_sheet(pictures: Sequence[Image.Image], scenes: Sequence[Scene]) -> Image.Image:
    """Eight pictures a row, twice their size, each above its caption."""
    rows = -(-len(pictures) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * CELL, rows * (CELL + TEXT)), "white")
    pen = ImageDraw.Draw(sheet)
    for place, (picture, scene) in enumerate(zip(pictures, scenes, strict=True)):
        x, y = place % COLUMNS * CELL, place // COLUMNS * (CELL + TEXT)
        sheet.paste(picture.resize((CELL - 4, CELL - 4), Image.Resampling.NEAREST), (x + 2, y + 2))
        words = textwrap.wrap(caption(scene).replace(" background", ""), LETTERS)[:LINES]
        pen.multiline_text((x + 3, y + CELL), "\n".join(words), fill="black", spacing=1)
    return sheet


def in_words(result: Fidelity) -> str:
    """One line of percentages."""
    return ", ".join(f"{name} {share:.1%}" for name, share in asdict(result).items())


def _own_options(pipe: Any) -> dict[str, Any]:
    """T5 reads as much as it was trained on: the pipelines' defaults are four and eight times that."""
    t5 = {"StableDiffusion3Pipeline": "tokenizer_3", "FluxPipeline": "tokenizer_2"}.get(type(pipe).__name__)
    return {"max_sequence_length": getattr(pipe, t5).model_max_length} if t5 else {}


def main(arguments: list[str] | None = None) -> int:
    """Print the fidelity of a model on held-out prompts."""
    parser = argparse.ArgumentParser(prog="python -m studio.pocket.check", description=__doc__)
    parser.add_argument(
        "--model", type=Path, default=MODEL, help="a diffusers folder; default: the shipped base"
    )
    parser.add_argument("--prompts", type=int, default=64, help="how many held-out prompts")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--stray", action="store_true", help="a made-up word behind each prompt")
    parser.add_argument("--sheet", type=Path, help="also write the pictures to this PNG file")
    options = parser.parse_args(arguments)
    if not (options.model / "model_index.json").exists():
        raise NotFound(str(options.model), "is no diffusers folder", "give the folder with model_index.json")
    scenes = evaluation_scenes(options.prompts)
    pictures = draw(load(options.model), scenes, options.seed, stray=options.stray)
    if options.sheet:
        contact_sheet(pictures, scenes).save(options.sheet)
    behind = ", a made-up word behind each" if options.stray else ""
    sys.stdout.write(f"{options.prompts} held-out prompts{behind}: {in_words(fidelity(pictures, scenes))}\n")
    return 0


if __name__ == "__main__":
    end_with(main)
