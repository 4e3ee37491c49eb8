"""The parts of `session.open_session`: precision, base, data, caches, restoring."""

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from registry.errors import BadInput, Damaged
from registry.hashing import HashMemo, hash_json
from trainers import guards
from trainers.base_weights import choose, load_part
from trainers.cache import LatentCache, TextCache
from trainers.captions import captions_needed, wording
from trainers.checkpointing import enable_checkpointing
from trainers.checkpoints import Learning, Store, read_numbers, restore, same_optimizer
from trainers.class_pictures import class_pictures
from trainers.data import check_captions, load_items, read_pixels
from trainers.dreambooth import attach_all, check_dreambooth, live_encoders
from trainers.ema import Ema, ScheduleFreeMean
from trainers.families import FAMILIES
from trainers.families.base import BaseFiles, Conditioning, Family, Use
from trainers.families.common import tokenizer_of
from trainers.flat import Flat, refresh
from trainers.groups import make_flats
from trainers.held_out import split
from trainers.kernels import keep_memory, settle_kernels
from trainers.ladder import Rungs
from trainers.masks import MaskCache, focus_of
from trainers.metrics import Reporter
from trainers.new_tokens import know_words
from trainers.optim import make_optimizer, optimizer_kind
from trainers.packed import pack
from trainers.placing import place_items, views
from trainers.plan import Item, replace_trigger
from trainers.priors import check_words_named, with_class_captions
from trainers.recipe import OptimizerSection, Recipe, TrainSection
from trainers.rundir import RunDir, RunEnv, checkpoint_step, verify_checkpoint
from trainers.sharing import in_turn, share_part
from trainers.signals import StopFlag
from trainers.stored import Precision
from trainers.weight_first import apply_weight_first

ENCODE_BATCH = 8  # pictures per VAE call at 512 px; fewer when they are larger
SMALL_STEP = 8 * 128**2  # pixels in a batch below which one thread is fastest
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Setting:
    """The world of a run while it is set up."""

    recipe: Recipe
    env: RunEnv
    rundir: RunDir
    reporter: Reporter
    stop: StopFlag

    @cached_property
    def accelerator(self) -> Accelerator:
        """Device, precision, accumulation, processes."""
        return make_accelerator(self.recipe)

    @cached_property
    def family(self) -> Family:
        """The base, not loaded yet."""
        return make_family(self.recipe, self.env, self.rundir, self.accelerator.device)

    @property
    def writes(self) -> bool:
        """Whether this is the first process."""
        return self.accelerator.is_main_process

    @property
    def cache(self) -> Path:
        """Folder of latents and conditioning, shared by the runs of a workspace."""
        return self.rundir.resolve(self.env.cache)

    @cached_property
    def memo(self) -> HashMemo:
        """Hashes of weight files that were hashed before."""
        return HashMemo(self.cache / "hashes.json")

    @contextmanager
    def first_process_first(self) -> Generator[None]:
        """What the first process does in the block, the others find done."""
        with self.accelerator.main_process_first():
            yield

    def progress(self, done: int, total: int) -> None:
        """Progress of the phase; a wish to stop is heard here."""
        self.stop.check()
        self.reporter.progress(done, total)


def make_accelerator(recipe: Recipe) -> Accelerator:
    """Accelerate's object for this process; also sets threads and kernels."""
    cuda = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true")
    precision = choose_precision(recipe.train.precision, cuda=cuda)
    if not cuda:
        torch.set_num_threads(recipe.train.num_threads or cpu_threads(recipe.train))
        keep_memory()
    else:
        settle_kernels()
        torch.backends.cudnn.benchmark = True  # shapes repeat: buckets are few
        if precision != "fp32":
            torch.set_float32_matmul_precision("high")  # TF32 for what stays fp32
    return Accelerator(
        cpu=not cuda and not torch.backends.mps.is_available(),
        mixed_precision="no" if precision == "fp32" else precision,
        gradient_accumulation_steps=recipe.train.accumulate,
        # Other processes wait while the first one fills the caches, which may take hours.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))],
    )


def choose_precision(wanted: str, *, cuda: bool) -> str:
    """bf16 where the GPU has it, else fp16; fp32 without a CUDA device."""
    if wanted != "auto":
        return wanted
    if not cuda:
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def cpu_threads(train: TrainSection) -> int:
    """Threads per process when the recipe leaves them open.

    All that the launcher gives us, but one where steps are short: their operations take tens of
    microseconds, and threads that wait for each other in each of them cost up to twenty times the work when
    another program wants the same processors. A rule and no measurement, because another number of threads
    may round otherwise, and a resumed run has to be the same run.
    """
    if train.batch_size * train.sizes[-1] ** 2 < SMALL_STEP:
        return 1
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdigit() and int(said) > 0 else max(1, len(os.sched_getaffinity(0)))


def make_family(recipe: Recipe, env: RunEnv, rundir: RunDir, device: torch.device) -> Family:
    """The base of the run, to be loaded part by part.

    Raises:
        BadInput: the recipe is for another family, or the base is not there.
    """
    if recipe.family != env.family:
        raise BadInput(
            "recipe", f"is for {recipe.family}, the base is {env.family}", "choose a recipe for this base"
        )
    location, config = env.base_location, env.base_config
    if env.base_kind != "hub":
        location = str(rundir.resolve(location))
        config = str(rundir.resolve(config)) if config else ""
    base = BaseFiles(location, cast(Any, env.base_kind), config, env.base_revision)
    cuda = device.type == "cuda"
    dtype = DTYPES[choose_precision(recipe.train.precision, cuda=cuda)]
    use = Use(text_length=recipe.data.text_length, guidance=recipe.objective.guidance)
    return FAMILIES[recipe.family].load_class()(base, dtype=dtype, device=device, use=use)


def load_data(setting: Setting) -> tuple[list[Item], list[Item]]:
    """Pictures to train on, with their buckets, and those held out; what is odd about them is a warning."""
    data, train, family = setting.recipe.data, setting.recipe.train, setting.family
    for warning in check_dreambooth(setting.recipe):
        setting.reporter.warn(warning)
    sources = [*load_items(setting.rundir), *class_pictures(setting)]
    step = data.bucket_step or family.bucket_multiple
    if step % family.side_multiple:
        need = f"sides of this base are multiples of {family.side_multiple} px"
        raise BadInput("data.bucket_step", f"is {step}; {need}", "set it to 0 for the family's own")
    if idle := [side for side in train.resolutions if side not in train.sizes]:
        listed = ", ".join(map(str, idle))
        setting.reporter.warn(
            f"train.resolutions: {listed} do not count, they are not below train.resolution"
        )
    items, notes = place_items(
        sources,
        sizes=train.sizes,
        step=step,
        data=data,
        seed=train.seed,
        focus=lambda source: focus_of(source, setting.rundir.resolve),
    )
    check_captions(items, data)
    items, held = split(setting.recipe, items)
    setting.reporter.held_out(list(dict.fromkeys(item.label for item in held)))
    check_words_named(setting.recipe, [wording(i.source, data, train.seed).version(0, 0) for i in items])
    for index, note in enumerate(notes):
        if index:  # the first note is the tally of buckets
            setting.reporter.warn(note)
    for warning in (
        *guards.check_captions_differ(items, data, train.seed),
        *guards.check_tokens(family, items, data, train.seed),
    ):
        setting.reporter.warn(warning)
    return items, held


def preview_prompts(recipe: Recipe, items: list[Item]) -> list[str]:
    """The recipe's prompts, or the first two captions, with the trigger in place."""
    data, seed = recipe.data, recipe.train.seed
    taught = [item.source for item in items if not item.source.role]
    captions = dict.fromkeys(wording(source, data, seed).version(0, 0) for source in taught)
    prompts = recipe.preview.prompts or tuple(captions)[:2]
    return list(dict.fromkeys(replace_trigger(prompt, data.trigger, data.class_word) for prompt in prompts))


def encode_texts(
    setting: Setting, items: list[Item], prompts: list[str], priors: Sequence[str] = ()
) -> tuple[Callable[[list[str]], Conditioning], Callable[[list[str]], Conditioning]]:
    """How captions become conditioning: for batches, and for previews.

    A frozen text encoder is asked once per caption, ever, and then leaves the memory. A trained one gets
    tokens, at each step.
    """
    family, recipe = setting.family, setting.recipe
    live, words = live_encoders(family, recipe), recipe.tokens.words
    know_words(family, recipe.tokens)
    if set(live) == set(family.text_encoder_names):
        if not words:  # the words' vectors come later
            check_encoder(setting, captions_needed(items, recipe.data, recipe.train.seed), family.encode_text)
        return family.tokenize, family.encode_text
    encoders = family.text_encoder_names
    names = (*(tokenizer_of(name) for name in encoders), *encoders)
    hashes = [family.component_hash(name, setting.memo) for name in names]
    new = [[list(words), recipe.tokens.vectors]] if words else []
    encode, rounded = _encoding(setting, live)
    encoder_hash = hash_json([*hashes, *family.cache_facts(), *live, *new, *rounded])
    cache = TextCache(setting.cache, encoder_hash, dtype=family.dtype)
    captions = with_class_captions(captions_needed(items, recipe.data, recipe.train.seed), recipe)
    texts = list(dict.fromkeys([*captions, *prompts, recipe.preview.negative]))
    setting.reporter.phase("caching texts", len(texts))
    with setting.first_process_first():
        cache.fill(texts, encode=encode, progress=setting.progress)
        # By themselves: with others in a batch the last bit of those may be another.
        cache.fill(priors, encode=encode, progress=setting.progress)
    family.free(*(name for name in encoders if name not in live))

    def on_device(texts: list[str]) -> Conditioning:
        return family.conditioning({key: value.to(family.device) for key, value in cache.get(texts).items()})

    if not words:
        check_encoder(setting, captions, on_device)
    return cache.get, on_device


def _encoding(
    setting: Setting, live: Sequence[str]
) -> tuple[Callable[[list[str]], Conditioning], list[Precision]]:
    """What encodes captions for the cache, and how T5's weights are kept for that where they are rounded."""
    family, name = setting.family, setting.family.t5_encoder
    if name not in family.text_encoder_names or name in live:
        return (lambda texts: family.encode_text(texts, live)), []
    kept = choose(family, name, setting.recipe.train)

    def encode(texts: list[str]) -> Conditioning:
        load_part(family, name, kept)  # only now, for all may be cached
        return family.encode_text(texts, live)

    return encode, [] if kept.precision == "whole" else [kept.precision]


def check_encoder(setting: Setting, captions: list[str], encode: Callable[[list[str]], Conditioning]) -> None:
    """Say so when captions come out of the text encoder, or of one of several, all the same."""
    told = [caption for caption in captions if caption][:8]
    with torch.no_grad():
        encoded = [encode([caption]) for caption in told]
    if dead := guards.dead_conditioning(encoded):
        setting.reporter.warn(
            f"the text encoder makes no difference between captions ({', '.join(dead)}): check the base's "
            "tokenizer"
        )


def encode_pictures(setting: Setting, items: list[Item]) -> LatentCache:
    """Every picture's latents, made once; the VAE leaves the memory unless previews need it."""
    family, recipe, rundir = setting.family, setting.recipe, setting.rundir
    cache = LatentCache(setting.cache, family.component_hash("vae", setting.memo))
    side = recipe.train.sizes[-1]
    flips = (False, True) if recipe.data.flip else (False,)
    shown = [view for item in items for view in views(item)]
    setting.reporter.phase("caching pictures", len(shown) * len(flips))
    with setting.first_process_first():
        cache.fill(
            shown,
            flips=flips,
            read=lambda item, flip: read_pixels(rundir.resolve(item.source.image), item, flip=flip),
            encode=family.encode_image,
            batch_size=max(1, ENCODE_BATCH * 512 * 512 // (side * side)) if side >= 512 else ENCODE_BATCH,
            progress=setting.progress,
        )
    if not (setting.writes and recipe.preview.every):
        family.free("vae")
    return cache


def encode_masks(setting: Setting, items: list[Item]) -> MaskCache | None:
    """Every mask at latent size; None when masks do not count or no picture has one."""
    data = setting.recipe.data
    if not data.masks or not any(item.source.mask for item in items):
        return None
    factor = setting.family.latent_factor
    cache = MaskCache(setting.cache, setting.rundir.resolve, factor, data.mask_floor)
    with setting.first_process_first():
        cache.fill([view for item in items for view in views(item)])
    return cache


def make_learning(setting: Setting, rungs: Rungs) -> Learning:
    """Denoiser with adapter, optimizer, running mean.

    Args:
        setting: The run.
        rungs: Savings of memory that earlier attempts needed.
    """
    recipe, family = setting.recipe, setting.family
    keeping = rungs.keeping(setting)
    with in_turn(setting.accelerator) if keeping.sharded else nullcontext():
        load_part(family, family.denoiser_name, keeping)
        trainables = attach_all(family, recipe)
        if keeping.sharded:
            share_part(family.denoiser, trainables.unshared, family.device)
    denoiser: Any = family.denoiser
    if family.device.type == "cuda" and not keeping.sharded:
        denoiser.to(memory_format=torch.channels_last)  # convolutions of UNets run on it natively
    if share := rungs.checkpointed(recipe.train):
        enable_checkpointing(family, trainables, share)
    if not keeping.sharded:  # the whole weights of all layers would stay until the way back
        apply_weight_first(trainables, family.device)
    section = rungs.section(recipe.optimizer)
    flats = make_flats(trainables, section, family.denoiser_name, recipe.tokens.lr)
    pack(trainables, flats, family.dtype)
    optimizer = make_optimizer(section, flats, family.device, recipe.train.seed)
    return Learning(trainables, flats, optimizer, make_mean(recipe, section, flats, optimizer, family.device))


def make_mean(
    recipe: Recipe, section: OptimizerSection, flats: list[Flat], optimizer: Any, device: torch.device
) -> Ema:
    """The running mean, or the optimizer's own."""
    parameters, train = [flat.parameter for flat in flats], recipe.train
    written = partial(refresh, flats)
    if optimizer_kind(section, device).own_mean:
        return ScheduleFreeMean(parameters, optimizer, written)
    where = torch.device("cpu") if train.ema_device == "cpu" else None
    return Ema(parameters, train.ema_decay, device=where, every=train.ema_every, written=written)


def restore_newest(setting: Setting, store: Store, learning: Learning) -> tuple[int, dict[str, Any]]:
    """Go on from the newest checkpoint, or branch from the parent; returns the steps done and state.json.

    Raises:
        BadInput: there are checkpoints but resuming was not asked for, or the parent cannot be used.
        Damaged: there are checkpoints and none of them verifies.
    """
    recipe, env, rundir = setting.recipe, setting.env, setting.rundir
    folder = store.latest()
    if rundir.checkpoints() and not env.resume:
        raise BadInput("this run", "has checkpoints already", "resume it, or start a new run")
    if rundir.checkpoints() and folder is None:
        raise Damaged("checkpoints", "none of them verifies", "start a new run")
    branch = folder is None and bool(env.parent)
    if branch:
        folder = rundir.resolve(env.parent)
        if not verify_checkpoint(folder, store.key):
            raise BadInput(folder.name, "does not verify", "branch from another checkpoint of this workspace")
    if folder is None:
        return 0, {}
    start = checkpoint_step(folder)
    if start > recipe.train.max_steps or (branch and start == recipe.train.max_steps):
        raise BadInput(
            "train.max_steps", f"is {recipe.train.max_steps}, the checkpoint has {start}", "raise it"
        )
    fits = same_optimizer(read_numbers(folder), learning)
    if not fits:
        setting.reporter.warn(
            "the parent used another optimizer or other groups: this run begins with a fresh one"
        )
    # What this recipe says counts, also where the checkpoint's said otherwise.
    peaks = [dict(group) for group in learning.optimizer.param_groups]
    numbers = restore(folder, learning, optimizer=fits)
    for group, peak in zip(learning.optimizer.param_groups, peaks, strict=True):
        group.update({key: peak[key] for key in ("peak_lr", "betas", "eps", "weight_decay") if key in peak})
    if setting.accelerator.scaler is not None and numbers.get("scaler"):
        setting.accelerator.scaler.load_state_dict(numbers["scaler"])
    return start, ({} if branch else numbers)
