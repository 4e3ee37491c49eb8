"""Everything a run needs, set up in the order that keeps memory low: text, pictures, then the denoiser."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator

from trainers.base_pictures import base_pictures
from trainers.base_weights import Keeping
from trainers.checkpoints import Learning, Store, optimizer_class
from trainers.compiling import settle_compiling
from trainers.data import Batch, BatchSource
from trainers.dreambooth import prior_rows, publisher
from trainers.dry_run import Rehearsal, climb
from trainers.families.base import Family
from trainers.ladder import Rungs, after_failure, first_rungs
from trainers.loop import step_generator
from trainers.metrics import Reporter
from trainers.milestones import Milestones
from trainers.objectives import Objective, noise_schedule
from trainers.optim import schedule_in_force, set_rates
from trainers.preservation import BasePrediction
from trainers.preview import Previewer, preview_size, rewind_previews
from trainers.probe import make_probe, prior_captions
from trainers.readback import ReadBack
from trainers.recipe import load_frozen, recipe_hash
from trainers.recipe_fields import ScheduleSection
from trainers.rundir import RECIPE, RunDir, workspace_key
from trainers.schedules import lr_factor
from trainers.setup import (
    Setting,
    encode_masks,
    encode_pictures,
    encode_texts,
    load_data,
    make_learning,
    preview_prompts,
    restore_newest,
)
from trainers.sharing import Together
from trainers.signals import StopFlag
from trainers.tracking import open_trackers, track_into


@dataclass
class Session:
    """What `loop.train` works with."""

    setting: Setting
    objective: Objective
    learning: Learning
    optimizer: Any  # learning.optimizer, behind accelerate's gradient scaler for fp16
    source: BatchSource
    readback: ReadBack
    milestones: Milestones
    rungs: Rungs  # savings of memory in force
    schedule: ScheduleSection  # in force
    start: int  # steps that were done before this attempt
    trackers: list[Any]
    base: BasePrediction | None = None  # what rows of base-prediction preservation are compared with
    shared: bool = False  # whether the processes hold the base together
    torn: bool = False  # an error left a step in the middle, where other processes may wait for this one

    @property
    def accelerator(self) -> Accelerator:
        """Device, precision, accumulation, processes."""
        return self.setting.accelerator

    @property
    def family(self) -> Family:
        """The base with its adapter."""
        return self.setting.family

    @property
    def max_steps(self) -> int:
        """Last step of the run."""
        return self.setting.recipe.train.max_steps

    @property
    def accumulate(self) -> int:
        """Micro-batches per step."""
        return self.setting.recipe.train.accumulate

    @property
    def max_grad_norm(self) -> float:
        """Infinity when clipping is off: the norm is reported all the same."""
        return self.setting.recipe.train.max_grad_norm or float("inf")

    def batches(self) -> Iterator[Batch]:
        """Batches from the first micro-batch of this attempt on."""
        return self.source.batches(*divmod(self.start * self.accumulate, self.source.batches_per_epoch))

    def generator(self, step: int, micro: int) -> torch.Generator:
        """Noise and timesteps of a micro-batch."""
        return step_generator(self.setting.recipe.train.seed, step, micro, self.accelerator.process_index)

    def prepare_step(self, step: int) -> None:
        """Learning rates of the step; the text encoders freeze when their time is over."""
        recipe = self.setting.recipe
        set_rates(self.learning.optimizer, lr_factor(self.schedule, step, self.max_steps))
        until = {"text": recipe.adapter.text_encoder_until, "tokens": recipe.tokens.until}
        for flat in self.learning.flats:
            if step > until.get(flat.role, 1.0) * self.max_steps:
                flat.freeze()

    def rates(self) -> dict[str, float]:
        """Learning rates in force, at a factor of 1 but for new words; Prodigy's include its own estimate."""
        names, rates = {"text": "text_lr", "tokens": "tokens_lr"}, dict[str, float]()
        for flat, group in zip(self.learning.flats, self.learning.optimizer.param_groups, strict=True):
            factor = 1.0 if flat.role == "tokens" else flat.factor
            rate = 0.0 if flat.frozen else group["lr"] * group.get("d", 1.0) / factor
            rates.setdefault(names.get(flat.role, "lr"), rate)
        return rates

    def wants_stop(self) -> bool:
        """Whether this process was asked to stop."""
        return bool(self.setting.stop)

    def must_stop(self) -> bool:
        """Whether the processes agreed to stop; they do at the same step."""
        return self.wants_stop() if self.accelerator.num_processes == 1 else self.readback.stop

    def memory_ran_out(self) -> None:
        """After the error: what the next attempt will do about it."""
        setting, step = self.setting, self.milestones.step
        # Whichever process it happens to: the first one may wait for it in vain.
        if said := after_failure(setting.rundir, setting, self.rungs, step):
            setting.reporter.warn(said)

    def close(self) -> None:
        """Wait for the last checkpoint, flush the trackers and leave the process group."""
        self.milestones.saver.close()
        for tracker in self.trackers:
            tracker.finish()
        if not self.torn:
            self.accelerator.end_training()


def open_session(rundir: RunDir, reporter: Reporter, stop: StopFlag) -> Session:
    """Load, cache, attach, restore.

    Raises:
        BadInput: recipe, data or base cannot be used.
        Stopped: asked to stop meanwhile.
    """
    recipe, env = load_frozen(rundir.file(RECIPE)), rundir.read_env()
    setting = Setting(recipe, env, rundir, reporter, stop)
    accelerator, family = setting.accelerator, setting.family
    objective = family.make_objective(recipe.objective)
    items, held = load_data(setting)
    everything = [*items, *held]
    prompts = preview_prompts(recipe, items)
    conditioning, prompt_conditioning = encode_texts(
        setting, everything, prompts, prior_captions(recipe, items)
    )
    latents = encode_pictures(setting, everything)
    source = BatchSource(
        items,
        latents,
        conditioning,
        recipe.data,
        recipe.train.seed,
        recipe.train.batch_size,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        masks=encode_masks(setting, everything),
        prior=prior_rows(recipe, conditioning),
    )
    stop.check()
    reporter.phase("loading")
    rungs = first_rungs(setting)
    learning = make_learning(setting, rungs)
    store = Store(rundir, workspace_key(), recipe.checkpoints.keep)
    start, numbers = restore_newest(setting, store, learning)
    rehearsal = Rehearsal(setting, objective, source, learning, rungs)
    rehearsal = climb(rehearsal, start=start, make=make_learning)
    learning, rungs = rehearsal.learning, settle_compiling(rehearsal, start=start)
    # Accelerate's wrapper is for the scaler; without one it only costs (it looks for a package at each step).
    optimizer = accelerator.prepare(learning.optimizer) if accelerator.scaler else learning.optimizer
    schedule = schedule_in_force(recipe.optimizer, recipe.schedule, family.device)
    if schedule != recipe.schedule:
        reporter.warn(
            f"{recipe.optimizer.name} takes no schedule: after the warmup its rate stays constant, "
            f"schedule.name={recipe.schedule.name} means nothing"
        )
    trackers: list[Any] = []
    previewer = probe = None
    keeping = rungs.keeping(setting)
    if setting.writes:
        store.sweep(start)
        reporter.rewind(start)
        rewind_previews(rundir, start)
        trackers = open_trackers(recipe, env, reporter, start)
    if setting.writes or keeping.sharded:  # of a shared base all processes ask the same
        if recipe.preview.every:
            previewer = _previewer(setting, learning, keeping, prompts, prompt_conditioning)
        probe = make_probe(setting, objective, learning, source, held)
    readback = ReadBack(
        reporter, accelerator.device, track_into(trackers), scaled=accelerator.scaler is not None
    )
    milestones = Milestones(
        recipe,
        learning,
        store,
        readback,
        reporter,
        previewer=previewer,
        probe=probe,
        numbers=lambda: _numbers(setting, learning),
        metadata=lambda step: _metadata(setting, learning, step),
        writes=setting.writes,
        publish=publisher(setting, learning),
    )
    if numbers.get("best"):
        milestones.best = (int(numbers["best"][0]), float(numbers["best"][1]))
        reporter.best(milestones.best[0])
    base = BasePrediction(family, learning.trainables, always=keeping.sharded) if source.prior else None
    return Session(
        setting,
        objective,
        learning,
        optimizer,
        source,
        readback,
        milestones,
        rungs,
        schedule,
        start,
        trackers,
        base,
        keeping.sharded,
    )


def _previewer(
    setting: Setting, learning: Learning, keeping: Keeping, prompts: list[str], encode: Any
) -> Previewer:
    recipe, family = setting.recipe, setting.family
    schedule = noise_schedule(family.scheduler_config(), recipe.objective)
    moved = bool(learning.trainables.initial)  # PiSSA takes what it learns out of the base's weights
    return Previewer(
        setting.rundir,
        recipe.preview,
        family,
        learning,
        encode,
        prompts,
        recipe.preview.negative,
        preview_size(recipe.preview, recipe.train.sizes[-1], family.side_multiple),
        lambda: setting.accelerator.autocast(),
        setting.reporter,
        schedule,
        None if moved else base_pictures(setting, keeping.precision, schedule),
        Together(setting.writes, keeping.sharded),
    )


def _numbers(setting: Setting, learning: Learning) -> dict[str, Any]:
    scaler = setting.accelerator.scaler
    return {
        "optimizer_class": optimizer_class(learning.optimizer),
        "recipe_hash": recipe_hash(setting.recipe),
        "scaler": scaler.state_dict() if scaler is not None else None,
    }


def _metadata(setting: Setting, learning: Learning, step: int) -> dict[str, str]:
    """Of the adapter file: what diffusers needs, and our own history, so that a file explains itself."""
    facts = {
        "run": setting.env.run_id,
        "name": setting.env.name,
        "step": step,
        "base": setting.env.base_hash,
        "trigger": setting.recipe.data.trigger,
        "recipe": setting.recipe.model_dump(mode="json"),
    }
    return {**learning.trainables.metadata(), "studio": json.dumps(facts, sort_keys=True)}
