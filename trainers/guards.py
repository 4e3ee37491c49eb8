"""What must not happen in silence: values that are not finite, adapters without effect, captions nobody
reads.

Also: from an exception to the kind of failure, its exit code and the line that a person reads.
"""

import errno
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from registry.errors import BadInput, StudioError, several
from trainers.captions import wording
from trainers.families.base import Family
from trainers.plan import Item
from trainers.recipe_fields import DataSection

DEAD_AFTER = 0.05  # share of the steps after which an adapter must have moved
SHOWN = 3  # names in a message

_MEMORY = re.compile(
    r"out of memory|DefaultCPUAllocator: (?:can't|not enough)|Cannot allocate memory"
    r"|CUBLAS_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)
_LOST = re.compile(r"gloo.*Connection (?:closed|reset) by peer", re.DOTALL)
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class NotFinite(StudioError):
    """Loss or gradient became NaN or infinite."""

    def __init__(self, what: str, step: int, names: Sequence[str]) -> None:
        super().__init__(
            f"step {step}",
            f"the {what} is not finite (pictures: {listed(names)})",
            "lower optimizer.lr, set train.precision to bf16 or fp32, or look at these pictures",
        )


@dataclass(frozen=True)
class Failure:
    """How a run failed: status kind, exit code of the process, one line."""

    kind: str
    exit_code: int
    reason: str


def classify(error: BaseException) -> Failure:
    """The failure behind an exception, looking through its causes."""
    chain = _chain(error)
    reason = _one_line(error)
    if isinstance(error, NotFinite):
        return Failure("nan", 3, reason)
    if any(is_memory(link) for link in chain):
        return Failure("oom", 4, _memory_reason(chain))
    if any(isinstance(link, OSError) and link.errno in _FULL for link in chain) or "MiB free" in reason:
        return Failure("disk", 5, reason)
    if isinstance(error, BadInput):
        return Failure("input", 2, reason)
    if isinstance(error, RuntimeError) and _LOST.search(str(error)):
        return Failure("killed", 1, "another process of the run is gone")
    return Failure("error", 1, reason)


def check_tokens(family: Family, items: Sequence[Item], data: DataSection, seed: int) -> list[str]:
    """Captions of which the text encoder will not see the end, in their longest version, by picture name."""
    cut = {
        item.label: f"{item.label} ({tokens} tokens)"
        for item in items
        if (tokens := max(map(family.tokens_cut, set(wording(item.source, data, seed).versions()))))
    }
    if not cut:
        return []
    count = several(len(cut), "caption is", "captions are")
    return [f"{count} longer than the text encoder reads; cut: {listed(list(cut.values()))}"]


def check_captions_differ(items: Sequence[Item], data: DataSection, seed: int) -> list[str]:
    """Captions that cannot teach anything: all empty, or missing for some pictures."""
    items = [item for item in items if not item.source.role]  # priors may all be called the same
    pictures = {item.source.image: item for item in items}
    bare = [item.label for item in pictures.values() if not item.source.caption.strip()]
    captions = {version for item in items for version in wording(item.source, data, seed).versions()}
    if captions == {""}:
        return ["no picture has a caption and there is no trigger word: prompts will not call the adapter"]
    if bare:
        return [f"{len(bare)} of {several(len(pictures), 'picture')} without a caption: {listed(bare)}"]
    if len(captions) == 1 and len(pictures) > 1:
        return ["all captions are the same: nothing but the trigger can be told apart"]
    return []


def is_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on the device or in the machine."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and bool(_MEMORY.search(str(error)))
    )


def dead_conditioning(rows: Sequence[Mapping[str, Tensor]]) -> list[str]:
    """Names of the values that are the same for all of several captions.

    Args:
        rows: Conditioning of one caption each, (1, ...). Values that are no floats, such as tokens and masks,
            do not count: captions of one length share their mask.
    """
    if len(rows) < 2:
        return []
    first, *others = rows
    return [
        name
        for name, value in first.items()
        if value.is_floating_point() and all(torch.equal(value, other[name]) for other in others)
    ]


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more."""
    names = list(dict.fromkeys(names))
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _memory_reason(chain: Sequence[BaseException]) -> str:
    said = [str(link).splitlines()[0] for link in chain if is_memory(link) and str(link)]
    first = said[0] if said else "no details"
    return _one_line(
        StudioError(
            "memory",
            f"the device ran out of it ({first[:160].rstrip('. ')})",
            "set train.gradient_checkpointing=true, then lower train.batch_size or train.resolution",
        )
    )


def _chain(error: BaseException) -> list[BaseException]:
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        link = link.__cause__ or link.__context__
    return links


def _one_line(error: BaseException) -> str:
    if isinstance(error, StudioError):
        return str(error)
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text[:300]}"
