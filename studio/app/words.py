"""Plain words for numbers, times and states, and escaping of foreign text. No Streamlit here."""

import re
from datetime import datetime
from pathlib import Path
from typing import Any

from registry.records import RunState, now

STATE_WORDS: dict[str, str] = {
    RunState.QUEUED: "Waiting",
    RunState.STARTING: "Starting",
    RunState.RUNNING: "Training",
    RunState.PAUSING: "Pausing",
    RunState.PAUSED: "Paused",
    RunState.STOPPING: "Stopping",
    RunState.STOPPED: "Stopped",
    RunState.FINISHED: "Finished",
    RunState.FAILED: "Failed",
    RunState.INTERRUPTED: "Interrupted",
}
STATE_TONES: dict[str, str] = {
    RunState.STARTING: "accent",
    RunState.RUNNING: "accent",
    RunState.PAUSING: "accent",
    RunState.STOPPING: "accent",
    RunState.FINISHED: "good",
    RunState.FAILED: "bad",
    RunState.INTERRUPTED: "warn",
}
PHASE_WORDS = {
    "loading": "Loading the base",
    "compiling": "Compiling",
    "caching texts": "Preparing captions and prompts",
    "caching pictures": "Preparing pictures",
    "preview": "Drawing previews",
    "training": "Training",
    "saving": "Saving",
}
SPOKEN = {
    "train.max_steps": "Steps",
    "train.batch_size": "Pictures at a time (batch size)",
    "train.accumulate": "Passes per step (accumulation)",
    "checkpoints.every": "Save a checkpoint every",
    "checkpoints.keep": "Keep the newest",
    "checkpoints.keep_best": "Keep the best, too",
    "checkpoints.held_out": "Pictures held out to judge by",
    "preview.every": "Draw previews every",
    "preview.steps": "Steps of a preview",
    "preview.cfg": "Guidance of a preview",
    "preview.seed": "Seed of the previews",
    "preview.negative": "What previews avoid",
    "preview.prompts": "What previews show",
    "preview.size": "Size of a preview",
    "preview.scheduler": "Sampler of previews",
    "optimizer.eps": "Epsilon",
    "optimizer.lora_plus_ratio": "LoRA+ ratio",
    "schedule.min_lr": "Lowest learning rate",
    "optimizer.lr": "Learning rate",
    "optimizer.text_lr": "Learning rate, text encoder",
    "adapter.train_text_encoder": "Teach the text encoder, too",
    "adapter.train_t5": "Teach T5, too",
    "adapter.block_ranks": "Ranks of single blocks",
    "adapter.rank": "Capacity (rank)",
    "schedule.name": "Shape of the learning rate",
    "optimizer.name": "Optimizer",
    "optimizer.block_lrs": "Learning rates by layer (factors)",
    "train.base_weights": "Weights of the base",
    "train.compile": "Compile the blocks",
    "train.checkpointed_blocks": "Share of the blocks that are recomputed",
    "train.base_streaming": "Base from the main memory",
    "train.base_sharding": "Base shared by the GPUs",
    "data.trigger": "Trigger word",
    "preservation.mode": "What keeps the class",
    "preservation.weight": "Weight of what is kept",
    "preservation.class_prompt": "What the class is called",
    "preservation.rows": "Extra rows per picture",
    "preservation.count": "Class pictures",
    "preservation.steps": "Steps of a class picture",
    "preservation.cfg": "Guidance of a class picture",
    "preservation.scheduler": "Sampler of a class picture",
    "tokens.words": "New words",
    "tokens.init": "What they mean at the start",
    "tokens.vectors": "Vectors per word",
    "tokens.only": "Words alone, no adapter",
    "tokens.lr": "Learning rate, new words",
    "tokens.until": "Words learn until",
}
ORIGIN_WORDS = {
    "run": "trained here",
    "import": "imported",
    "merge": "merged",
    "resize": "resized",
    "extract": "extracted",
    "edit": "edited",
}
METHOD_WORDS = {
    "lora": "LoRA",
    "rslora": "rsLoRA",
    "pissa": "PiSSA",
    "dora": "DoRA",
    "loha": "LoHa",
    "lokr": "LoKr",
    "oft": "OFT",
    "tucker": "LoRA, Tucker",
    "full": "whole layers",
    "norm": "norms",
    "embedding": "new words",
}

PROPER = {  # how words that are names or abbreviations are written
    "cfg": "CFG",
    "ema": "EMA",
    "lokr": "LoKr",
    "oft": "OFT",
    "pissa": "PiSSA",
    "snr": "SNR",
    "tensorboard": "TensorBoard",
    "wandb": "Weights & Biases",
}

_LINKS = re.compile(r"(?i)(?<=http)(?=s?:)|(?<=www)(?=\.)|(?=@)")  # where Markdown would see an address begin
_JOINER = "\N{WORD JOINER}"  # not seen and not a place to break a line
_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")


def md(text: object) -> str:
    """`text` so that Markdown shows it as it is: punctuation escaped, line breaks as blanks, no links.

    Addresses become links even when escaped, so an invisible joiner is put into them.
    """
    plain = _LINKS.sub(_JOINER, " ".join(printable(text).split()))
    return _PUNCTUATION.sub(r"\\\1", plain)


def printable(text: object) -> str:
    """`text` without control characters and direction overrides: foreign names must not rearrange a page."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def ago(time: datetime | None) -> str:
    """How long ago, in words."""
    if time is None:
        return ""
    seconds = max(0, int((now() - time).total_seconds()))
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            count = seconds // size
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


def duration(seconds: float | None) -> str:
    """Seconds -> "2 h 5 min", "3 min", "40 s"; "" for None."""
    if seconds is None:
        return ""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"


def size(count: float) -> str:
    """Bytes -> "12.3 MB" (decimal units, as file managers show them)."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def plural(count: int, noun: str) -> str:
    """1 -> "1 picture", 2 -> "2 pictures"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def value_text(value: Any) -> str:
    """A recipe value as people read it."""
    if value is None or value in ("", (), [], {}):
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} = {value_text(item)}" for name, item in value.items())
    return str(value)


def spoken(key: str) -> str:
    """`train.max_steps` -> "Steps"; a few by hand, the others by their name."""
    if key in SPOKEN:
        return SPOKEN[key]
    first, *others = (PROPER.get(word, word) for word in key.rpartition(".")[2].split("_"))
    return " ".join((first[:1].upper() + first[1:], *others))


def tail(path: Path, lines: int) -> str:
    """The last `lines` lines of a text file; reads at most 64 KiB of it."""
    if not path.exists():
        return ""
    with path.open("rb") as stream:
        stream.seek(0, 2)
        stream.seek(max(0, stream.tell() - (1 << 16)))
        text = stream.read().decode("utf-8", errors="replace")
    return printable("\n".join(text.replace("\r", "\n").splitlines()[-lines:]))
