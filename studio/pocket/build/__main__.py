"""The command: `python -m studio.pocket.build [--minutes N] [--out DIR] [--resume]`."""

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from registry.errors import BadInput, StudioError
from registry.files import write_json
from studio.pocket import check
from studio.pocket.build.autoencoder import AutoencoderPlan, encode, round_trip_psnr, train_autoencoder
from studio.pocket.build.denoiser import DenoiserPlan, tokenize, train_denoiser
from studio.pocket.build.material import captioned_pictures, mixed_pictures
from studio.pocket.build.networks import assemble, make_autoencoder, make_denoiser, make_text_encoder
from studio.pocket.build.stage import Say
from studio.pocket.build.tokenizer import make_tokenizer
from studio.pocket.checker import Fidelity
from studio.pocket.grammar import evaluation_scenes

AUTOENCODER_SHARE = 0.2  # of the time
PICTURES_PER_MINUTE = 400  # more minutes, more pictures: a short build must not spend itself drawing
MOST_PICTURES = 40_000


@dataclass(frozen=True)
class BuildPlan:
    """Sizes of a build. Steps of 0 = as many as `minutes` allow."""

    minutes: float = 90.0
    pictures: int = 0  # 0 = from the minutes
    autoencoder_steps: int = 0
    denoiser_steps: int = 0
    autoencoder_batch: int = 40
    denoiser_batch: int = 16
    prompts: int = 64  # held-out prompts that judge the result; half as many judge the progress

    @property
    def picture_count(self) -> int:
        """How many pictures each stage sees."""
        return self.pictures or min(MOST_PICTURES, max(2000, int(self.minutes * PICTURES_PER_MINUTE)))


@dataclass(frozen=True)
class BuildResult:
    """What a build did."""

    model: Path
    autoencoder_losses: list[float]
    denoiser_losses: list[float]
    psnr: float  # dB
    fidelity: Fidelity


def build(out: Path, plan: BuildPlan, say: Say, *, resume: bool = False) -> BuildResult:
    """Train everything from nothing into `out`; the pipeline is `out/model`, in fp16."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)  # first weights
    tokenizer = make_tokenizer()
    vae, denoiser = make_autoencoder().to(device), make_denoiser().to(device)
    text_encoder = make_text_encoder(tokenizer).to(device)
    seconds = plan.minutes * 60
    say(f"on {device}; {plan.picture_count} pictures")

    mixed = mixed_pictures(plan.picture_count, 11, say)
    first = AutoencoderPlan(
        out / "autoencoder.state", plan.autoencoder_batch, plan.autoencoder_steps, seconds * AUTOENCODER_SHARE
    )
    vae_losses = train_autoencoder(vae, mixed, first, say, resume=resume)
    psnr = round_trip_psnr(vae, mixed_pictures(64, 99, say))
    say(f"autoencoder: {psnr:.1f} dB on unseen pictures")

    seen = captioned_pictures(plan.picture_count, 1000, say)
    latents = encode(vae, seen.pixels) * vae.config.scaling_factor
    ids = tokenize(tokenizer, seen.captions)
    pipe = assemble(vae, tokenizer, text_encoder, denoiser)

    def report(step: int) -> None:
        result = check.measure(pipe, evaluation_scenes(max(1, plan.prompts // 2)))
        say(f"denoiser: after step {step} of held-out prompts: {check.in_words(result)}")

    second = DenoiserPlan(
        out / "denoiser.state", plan.denoiser_batch, plan.denoiser_steps, seconds * (1 - AUTOENCODER_SHARE)
    )
    losses = train_denoiser(denoiser, text_encoder, latents, ids, second, say, resume=resume, at_mark=report)
    result = check.measure(pipe, evaluation_scenes(plan.prompts))
    pipe.to(dtype=torch.float16).save_pretrained(out / "model")
    write_json(out / "fidelity.json", {"psnr": psnr, **result.__dict__})
    return BuildResult(out / "model", vae_losses, losses, psnr, result)


def main(arguments: list[str] | None = None) -> int:
    """Parse, build, print."""
    parser = argparse.ArgumentParser(prog="python -m studio.pocket.build", description=__doc__)
    parser.add_argument("--minutes", type=float, default=90.0, help="training time, drawing not counted")
    parser.add_argument("--out", type=Path, default=Path("pocket-build"), help="folder of the result")
    parser.add_argument("--resume", action="store_true", help="go on from the states in that folder")
    options = parser.parse_args(arguments)
    if not options.minutes > 0:
        raise BadInput("--minutes", f"is {options.minutes}", "give a number above 0")
    if any(options.out.glob("*.state")) and not options.resume:
        raise BadInput(str(options.out), "holds an earlier build", "add --resume or name another folder")
    result = build(options.out, BuildPlan(minutes=options.minutes), _say, resume=options.resume)
    sys.stdout.write(f"{result.model}\n64 held-out prompts: {check.in_words(result.fidelity)}\n")
    return 0


def _say(text: str) -> None:
    sys.stderr.write(text + os.linesep)
    sys.stderr.flush()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except StudioError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
