"""One stage in a process of its own: an autoencoder, or a base that uses one.

`python -m studio.pocket.build.worker --out DIR STAGE`, where STAGE is `autoencoder-4`, `autoencoder-16` or
the name of a base. `studio.pocket.build` starts these; by hand it serves for looking into one.
"""

import argparse
import copy
import json
import math
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from registry.errors import BadInput
from registry.files import atomic_path, write_json
from studio.pocket import check
from studio.pocket.build.autoencoder import (
    AutoencoderPlan,
    encode,
    hatching_kept,
    round_trip_psnr,
    train_autoencoder,
)
from studio.pocket.build.drawing import draw_some
from studio.pocket.build.files import DIVERGED, NOT_RECORDED, Files, pack_model
from studio.pocket.build.kinds.base import Kind, Material, Part, read_captions
from studio.pocket.build.kinds.table import KINDS, make_kind
from studio.pocket.build.networks import Network, make_autoencoder, parameters_of
from studio.pocket.build.replay import Inputs, NotRecorded
from studio.pocket.build.stage import Diverged, Mark, Stage, run_stage, steps_in
from studio.pocket.checker import fidelity
from studio.pocket.command import end_with, say
from studio.pocket.grammar import evaluation_scenes
from studio.workspace import PACKAGED

SHIPPED_AUTOENCODERS = {4: PACKAGED["pocket"] / "vae", 16: PACKAGED["pocket-sd35"] / "vae"}  # by channels
PATIENCE = 600.0  # seconds to wait for what another process makes
FULL_BATCH = 256  # what learning rates are given for
JUDGED = 64  # new pictures of each kind that an autoencoder is judged by


@dataclass(frozen=True)
class Work:
    """What a worker is told; see `Stage` for `steps`, `until` and `plain`.

    Args:
        stage: Which.
        out: Folder of the build.
        pack: Folder for packed models; None = they are not packed.
        batch: 0 = as fits the device.
        prompts: Held-out prompts that judge the result.
        marks: How often on the way.
        rate: Times the usual learning rate.
        shipped: The autoencoder that ships with the studio instead of a new one.
        further: A base begins with the weights that ship with the studio.
    """

    stage: str
    out: Path
    pack: Path | None = None
    steps: int = 0
    until: float = 0.0
    batch: int = 0
    prompts: int = 64
    marks: int = 8
    rate: float = 1.0
    plain: bool = False
    resume: bool = False
    shipped: bool = False
    further: bool = False

    @property
    def files(self) -> Files:
        """Where everything is."""
        return Files(self.out)


def work_autoencoder(work: Work, channels: int, device: torch.device) -> None:
    """Train it, write it down with its figures, and the latents of all captioned pictures."""
    files = work.files
    torch.manual_seed(channels)
    vae = make_autoencoder(channels).to(device)
    if work.shipped:
        _fill_from(vae, SHIPPED_AUTOENCODERS[channels])
    else:
        _learn_autoencoder(work, vae)
    others, scenes = draw_some("mixed", JUDGED, 99)[0], draw_some("captioned", JUDGED, 98)[0]
    figures = {
        "psnr_grammar": round_trip_psnr(vae, torch.from_numpy(scenes.copy())),
        "psnr_mixed": round_trip_psnr(vae, torch.from_numpy(others.copy())),
        "hatching_kept": hatching_kept(vae),
        "parameters": parameters_of(vae),
    }
    say(f"{work.stage}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
    _wait_for(files.captions("captioned"))
    pixels = torch.from_numpy(np.load(files.pixels("captioned")))
    shift = vae.config.shift_factor or 0.0
    parts = [
        ((encode(vae, part) - shift) * vae.config.scaling_factor).half().cpu().numpy()
        for part in pixels.split(8192)
    ]
    with atomic_path(files.latents(channels), durable=False) as temporary, temporary.open("wb") as file:
        np.save(file, np.concatenate(parts))
    write_json(files.figures(channels), figures)
    vae.save_pretrained(files.autoencoder(channels))
    files.finished(work.stage).touch()


def _learn_autoencoder(work: Work, vae: Network) -> None:
    batch = work.batch or (64 if vae.device.type == "cuda" else 10)
    state = work.files.state(work.stage)
    plan = AutoencoderPlan(state, batch, work.steps, work.until, work.rate, work.plain)
    mixed = torch.from_numpy(np.load(work.files.pixels("mixed")))
    train_autoencoder(vae, mixed, plan, say, resume=work.resume)


def _fill_from(vae: Network, folder: Path) -> None:
    """Weights and scale of a saved one."""
    saved = _load_weights(vae, folder)
    vae.register_to_config(scaling_factor=saved.config.scaling_factor, shift_factor=saved.config.shift_factor)


def _load_weights(model: Network, folder: Path) -> Network:
    """Give it those of a saved one, which is returned: what is loaded itself remembers its folder."""
    saved = type(model).from_pretrained(folder, torch_dtype=torch.float32)
    model.load_state_dict(saved.state_dict())
    return saved


def work_kind(work: Work, device: torch.device) -> None:
    """Train a base and write down model, figures, curve and contact sheet, now and then and at the end."""
    files, channels = work.files, KINDS[work.stage].channels
    torch.manual_seed(0)  # first weights
    kind = make_kind(work.stage).to(device)
    sizes = ", ".join(f"{name} {parameters_of(model):,}" for name, model in kind.models.items())
    say(f"{work.stage}: {sizes} parameters on {device}")
    batch = work.batch or (FULL_BATCH if device.type == "cuda" else 16)
    texts = kind.read(read_captions(files.captions("captioned")), device)
    say(f"{work.stage}: {texts.different} different captions")
    _wait_for(files.finished(f"autoencoder-{channels}"))
    material = Material(torch.from_numpy(np.load(files.latents(channels))).to(device), texts)
    desk = _Desk(work, kind, device, batch)
    seconds = max(0.0, work.until - time.time())
    parts = kind.parts()
    if work.further:
        for name, model in kind.models.items():
            _load_weights(model, PACKAGED[work.stage] / name)
        parts = [part for part in parts if part.report is None]  # those read already
    for part in parts:
        _train_part(work, kind, part, seconds, material, desk)
    if not desk.judged:  # else the last mark was at the end
        desk.report(None)
    say(f"{work.stage}: end: {desk.judged}")
    files.finished(work.stage).touch()


def _train_part(
    work: Work, kind: Kind, part: Part, seconds: float, material: Material, desk: "_Desk"
) -> None:
    """One part of a base: `seconds` are those of all parts together."""
    device = material.latents.device
    autocast = kind.half and device.type == "cuda" and not work.plain
    name = f"{work.stage}-{part.name}" if part.name else work.stage

    def loss_of(inputs: Inputs) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            return part.loss(inputs)

    def at_mark(mark: Mark) -> None:
        if part.report is None:
            desk.report(mark)
        else:
            say(f"{name}: step {mark.step}: {part.report()}")

    if part.begin:
        part.begin()
    for model_name, model in kind.models.items():
        model.train()
        model.requires_grad_(model_name in part.models)
    learning = [kind.models[model] for model in part.models]
    stage = Stage(
        name, [*learning, *(helper.to(device) for helper in part.helpers)], work.files.state(name),
        peak_lr=kind.peak_lr * work.rate * part.rate * math.sqrt(math.sqrt(desk.batch / FULL_BATCH)),
        beta2=0.99, weight_decay=0.01, hold=part.hold, steps=math.ceil(work.steps * part.share),
        until=time.time() + seconds * part.share, seed=2, marks=max(1, round(work.marks * part.share)),
        plain=work.plain,
    )  # fmt: skip
    run_stage(
        stage, lambda g: part.draw(material, desk.batch, g), loss_of, say, resume=work.resume, at_mark=at_mark
    )
    if part.report is None:
        desk.earlier += steps_in(stage.state_file)


def _wait_for(file: Path) -> None:
    """Until another process has written it."""
    waiting = time.monotonic()
    while not file.exists():
        if time.monotonic() - waiting > PATIENCE:
            raise BadInput(str(file), "is not there", "let the stage before it end first")
        time.sleep(0.2)


class _Desk:
    """Judges a base and writes it down."""

    def __init__(self, work: Work, kind: Kind, device: torch.device, batch: int) -> None:
        self._work, self._kind, self.batch = work, kind, batch
        self.earlier = 0  # steps of the parts before this one that pictures judge
        channels = KINDS[work.stage].channels
        self._vae: Network = make_autoencoder(channels)
        _fill_from(self._vae, work.files.autoencoder(channels))
        self._vae.to(device).eval()
        self.judged = ""  # what was seen last, in words
        self._figures = json.loads(work.files.figures(channels).read_text(encoding="utf-8"))

    def report(self, mark: Mark | None) -> None:
        """Draw, check, save and pack; None = there was no mark on the way."""
        work, kind = self._work, self._kind
        folder = work.files.result(work.stage)
        folder.mkdir(parents=True, exist_ok=True)
        for model in kind.models.values():
            model.eval()
        scenes = evaluation_scenes(work.prompts)
        pipe = kind.pipeline(self._vae, kind.models)
        pipe.set_progress_bar_config(disable=True)
        pictures = check.draw(pipe, scenes)
        for model in kind.models.values():
            model.train()
        result = fidelity(pictures, scenes)
        self.judged = check.in_words(result)
        if mark:
            say(f"{work.stage}: step {mark.step}: {self.judged}")
        check.contact_sheet(pictures, scenes).save(folder / "sheet.png")
        if mark:
            samples = (self.earlier + mark.step) * self.batch
            seen = {"samples": samples, **asdict(mark), **asdict(result)}
            with (folder / "curve.jsonl").open("a", encoding="utf-8") as curve:
                curve.write(json.dumps(seen) + "\n")
        write_json(folder / "fidelity.json", {**self._figures, **asdict(result)})
        self._save(folder / "model")
        if work.pack:
            pack_model(folder, work.pack / f"{work.stage}.tar")

    def _save(self, target: Path) -> None:
        """The pipeline in fp16; the old folder is there until the new one is complete."""
        fresh = target.with_name("model.new")
        shutil.rmtree(fresh, ignore_errors=True)
        halves = {name: copy.deepcopy(model).half().eval() for name, model in self._kind.models.items()}
        self._kind.pipeline(copy.deepcopy(self._vae).half(), halves).save_pretrained(fresh)
        shutil.rmtree(target, ignore_errors=True)
        fresh.rename(target)


def main(arguments: list[str] | None = None) -> int:
    """Parse and work; the exit code says whether another try with other settings may help."""
    work = Work(**vars(_parser().parse_args(arguments)))
    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()
        library.set_verbosity_error()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cuda.enable_cudnn_sdp(False)  # plans by shape; the other kernels record without fail
    try:
        if work.stage.startswith("autoencoder-"):
            work_autoencoder(work, int(work.stage.rpartition("-")[2]), device)
        else:
            work_kind(work, device)
    except NotRecorded as error:
        say(f"{work.stage}: the step cannot be recorded ({error})")
        return NOT_RECORDED
    except Diverged as error:
        say(str(error))
        return DIVERGED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m studio.pocket.build.worker", description=__doc__)
    parser.add_argument("stage", help="autoencoder-4, autoencoder-16 or a base")
    parser.add_argument("--out", type=Path, required=True, help="folder of the build")
    parser.add_argument("--pack", type=Path, help="folder for packed models")
    parser.add_argument("--resume", action="store_true", help="go on from the saved state")
    parser.add_argument("--plain", action="store_true", help="no recording, no fused optimizer")
    parser.add_argument("--shipped", action="store_true", help="take the autoencoder that is shipped")
    parser.add_argument("--further", action="store_true", help="begin with the base that is shipped")
    for name, default in (("steps", 0), ("batch", 0), ("prompts", 64), ("marks", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("until", 0.0), ("rate", 1.0)):
        parser.add_argument(f"--{name}", type=float, default=default)
    return parser


if __name__ == "__main__":
    end_with(main)
