"""Adapters on a loaded base: any number at once, each at its own strength, never merged into the base.

W' = W + sum_i weight_i (W'_i - W), with W'_i what adapter i alone makes of W; for LoRA the change is
alpha_i / r_i up_i down_i (Hu et al. 2021, arXiv:2106.09685).

The factors sit beside the weights and are never merged: merging and unmerging drifts. An adapter of weight 0
is not active at all, so it equals the base exactly. Adapters that were used stay in host memory, the longest
unused ones leave; plain LoRA is switched by copying (see `packed`), other methods by their own exact form
(see `parts`).
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from registry.errors import BadInput
from registry.formats.factors import Factors, shape_of
from registry.formats.operations.strength import strength_of_blocks
from registry.formats.peft_config import PeftConfig
from registry.formats.rows import FullFactors
from registry.formats.tensors import Array
from registry.formats.words import Words
from studio.sampling.coverage import Coverage
from studio.sampling.layers import Level, NormChange
from studio.sampling.loading import Loaded, load_exactly, load_parts
from studio.sampling.packed import Blob, LoraPart, Pack
from studio.sampling.parts import Site, added_bias, addition, norm_change
from studio.sampling.spots import Spot, Spots
from studio.sampling.strengths import Schedule, check_blocks, factor_at
from trainers.new_tokens import set_words

if TYPE_CHECKING:
    from trainers.families.base import Family

HOST_SHARE, HOST_MOST = 1 / 8, 4 * 2**30  # of the memory, bytes: for adapters that are kept
KEPT_READY = 2  # unused adapters of other methods than LoRA whose factors stay on the device

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class AdapterUseInStack:
    """An adapter file and how strongly it acts on the denoiser and on the text encoders.

    Args:
        name: As its owner knows it.
        path: The file.
        key: Of its tensors and, where these do not say it, its strength.
        weight: On the denoiser.
        text_weight: On the text encoders.
        blocks: Factors of blocks, the last that fits a module counts.
        schedule: (fraction of the steps, factor) of what acts on the denoiser.
        peft: What the catalog knows of its strength.
    """

    name: str
    path: Path
    key: str
    weight: float
    text_weight: float
    blocks: Mapping[str, float] = field(default_factory=dict[str, float])
    schedule: Schedule = ()
    peft: PeftConfig | None = None

    @property
    def acts(self) -> bool:
        """Whether it does anything at all."""
        return self.weight != 0 or self.text_weight != 0


@dataclass(frozen=True, kw_only=True)
class LoadReport(Coverage):
    """What of an adapter found its place in the base.

    Args:
        name: Of the adapter.
    """

    name: str


@dataclass
class _Kept:
    """An adapter in host memory, with its places in this base.

    Args:
        report: What it was found to be.
        words: New words of text encoders.
        blobs: Its plain LoRA, one a dtype.
        others: (module, place, factors) of everything else; a bias is its array.
        ready: (module, place, change) of `others` on the device, None until it acts.
        nbytes: Of host memory.
        pinned: Whether the blobs are, or are about to be, in pinned memory.
    """

    report: LoadReport
    words: Words
    blobs: list[Blob]
    others: list[tuple[str, Spot, Factors | Array]]
    nbytes: int
    ready: list[tuple[str, Spot, Any]] | None = None
    pinned: bool = False


def _plain_tensors(function: Callable[P, R]) -> Callable[P, R]:
    """Run outside of inference mode, whose tensors nobody else may write to later."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.inference_mode(False), torch.no_grad():
            return function(*args, **kwargs)

    return run


class AdapterStack:
    """The adapters of one loaded base.

    Args:
        family: The base.
        budget: Bytes of host memory for adapters that are kept; default: a share of the memory.
        copied: See `Pack`; for tests.
    """

    def __init__(self, family: "Family", *, budget: int | None = None, copied: bool | None = None) -> None:
        self._family, self._copied = family, copied
        self._budget = _host_budget() if budget is None else budget
        self._spots = Spots(family)
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._packs: dict[torch.dtype, Pack] = {}
        self._numbers: dict[torch.dtype, list[int]] = {}  # of each pack: which of `_acting` are in it
        self._acting: list[tuple[_Kept, AdapterUseInStack, Level]] = []
        self._factors: list[float] = []  # where the schedules are
        self._touched: list[Spot] = []  # layers that other methods than LoRA act on
        self._ready: list[nn.Module] = []  # see `stand_ready`
        self._known: tuple[str, ...] = ()  # adapters whose words the tokenizers know now

    @property
    def nbytes(self) -> int:
        """Host memory of all adapters that are kept."""
        return sum(kept.nbytes for kept in self._kept.values())

    @_plain_tensors
    def use(self, wanted: Sequence[AdapterUseInStack]) -> list[LoadReport]:
        """Make exactly these adapters act, in this order, as at the first step.

        Raises:
            BadInput: a file cannot be read, or does not fit the base; both dimensions are named.
        """
        if not self._spots.current():
            self._forget()
        for use in wanted:
            check_blocks(use.name, use.blocks)
        kept = [self._keep(use) for use in wanted]
        acting = [(item, use, Level()) for item, use in zip(kept, wanted, strict=True) if use.acts]
        for item, use, _ in acting:
            self._make_ready(use.name, item)
        self._speak([(use.key, item.words) for item, use, _ in acting])
        self._acting = acting
        self._show()
        self._set([factor_at(use.schedule, 0.0) for _, use, _ in acting])
        self._pin_new()
        self._drop_old({use.key for use in wanted})
        return [replace(item.report, name=use.name) for item, use in zip(kept, wanted, strict=True)]

    @_plain_tensors
    def at(self, fraction: float) -> None:
        """Set the schedules to `fraction` of the steps (0 to 1); writes strengths and nothing else."""
        factors = [factor_at(use.schedule, fraction) for _, use, _ in self._acting]
        if factors != self._factors:
            self._set(factors)

    def _set(self, factors: list[float]) -> None:
        for (_, _, level), factor in zip(self._acting, factors, strict=True):
            level.value = factor
        for dtype, pack in self._packs.items():
            pack.at([factors[number] for number in self._numbers[dtype]])
        self._factors = factors

    @_plain_tensors
    def clear(self) -> None:
        """Forget all adapters; the base is as it was loaded."""
        self._forget()

    def _forget(self) -> None:
        self._speak([])
        for pack in self._packs.values():
            pack.clear()
        self._packs.clear()
        self._numbers.clear()
        self._acting, self._touched = [], []
        self._kept.clear()
        self._spots.clear()
        self._spots.wrap_within(self._ready)

    @_plain_tensors
    def stand_ready(self, blocks: Sequence[nn.Module]) -> None:
        """Prepare all layers in these blocks for adapters: who compiles them finds them as they stay."""
        self._ready = list(blocks)
        self._spots.wrap_within(self._ready)

    # -- acting

    def _show(self) -> None:
        """Give the layers what acts on them, at strengths that `at` will set."""
        for spot in self._touched:
            spot.acts.others.clear()
        self._touched = []
        shown: dict[torch.dtype, list[tuple[int, Blob]]] = {dtype: [] for dtype in self._packs}
        for number, (kept, use, level) in enumerate(self._acting):
            for blob in kept.blobs:
                shown.setdefault(blob.dtype, []).append((number, blob))
            ready = kept.ready or []
            moving = np.array([spot.moving for _, spot, _ in ready], np.bool_)
            weights = self._strengths(use, [module for module, _, _ in ready], moving).tolist()
            for (_, spot, change), weight in zip(ready, weights, strict=True):
                if weight:
                    spot.wrap()
                    spot.add(change, weight, level)
                    self._touched.append(spot)
        for dtype, blobs in shown.items():
            for _, blob in blobs:
                for spot in blob.spots:
                    spot.wrap()
            strengths = [
                self._strengths(self._acting[number][1], blob.modules, blob.moving) for number, blob in blobs
            ]
            self._numbers[dtype] = [number for number, _ in blobs]
            self._pack(dtype).show([blob for _, blob in blobs], strengths)

    def _pack(self, dtype: torch.dtype) -> Pack:
        if dtype not in self._packs:
            self._packs[dtype] = Pack(self._family.device, dtype, copied=self._copied)
        return self._packs[dtype]

    def _strengths(
        self, use: AdapterUseInStack, modules: Sequence[str], moving: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Weight of each module without its alpha; `moving` says which are the denoiser's."""
        weights = np.where(moving, use.weight, use.text_weight)
        if not use.blocks:
            return weights
        strength = strength_of_blocks(use.blocks)
        return weights * np.array([strength.factor(self._family.name, module) for module in modules])

    def _speak(self, words: Sequence[tuple[str, Words]]) -> None:
        """Let the text encoders know the new words of these adapters; of two of one name the last counts."""
        speaking = tuple(key for key, own in words if own)
        if speaking == self._known:
            return
        known = {
            word: {name: torch.from_numpy(value) for name, value in rows.items()}
            for _, own in words
            for word, rows in own.items()
        }
        set_words(self._family, known)
        self._known = speaking

    # -- keeping

    def _keep(self, use: AdapterUseInStack) -> _Kept:
        if use.key in self._kept:
            self._kept.move_to_end(use.key)
            return self._kept[use.key]
        loaded = load_parts(use.path, self._family.name, use.peft)
        kept = self._placed(use.name, loaded)
        if not loaded.checked and not all(blob.is_finite() for blob in kept.blobs):
            load_exactly(use.path, self._family.name, use.peft)  # names the tensor
            dtype = str(self._family.dtype).removeprefix("torch.")
            wrong = f"has values that are too large for {dtype}, which this base computes in"
            raise BadInput(f"adapter {use.name}", wrong, "ask its author for another file")
        self._kept[use.key] = kept
        return kept

    def _placed(self, name: str, loaded: Loaded) -> _Kept:
        """Everything at its place in the base; checked as a whole before anything is changed."""
        loras: dict[torch.dtype, list[tuple[str, Spot, LoraPart]]] = {}
        others: list[tuple[str, Spot, Factors | Array]] = []
        unmatched: list[str] = []
        for module, part in loaded.loras.items():
            spot = self._spots.find(module)
            if spot is None or spot.is_norm:
                unmatched.append(module)
                continue
            spot.check(name, module, part.up.shape[0], part.down.numel() // part.down.shape[0])
            loras.setdefault(spot.dtype, []).append((module, spot, part))
        for module, factors in loaded.others.items():
            spot = self._spots.find(module)
            if spot is None or (spot.is_norm and not isinstance(factors, FullFactors)):
                unmatched.append(module)
                continue
            spot.check(name, module, *shape_of(factors))
            others.append((module, spot, factors))
        for module, bias in loaded.biases.items():
            spot = self._spots.find(module)
            if spot is None or (spot.is_norm and getattr(spot.base, "bias", None) is None):
                alone = module not in loaded.loras and module not in loaded.others
                unmatched += [] if module in unmatched else [module if alone else f"{module} (bias)"]
                continue
            spot.check(name, f"{module} (bias)", len(bias), 0)
            others.append((module, spot, bias))
        missing = tuple(dict.fromkeys(unmatched))
        matched = len(loaded.modules) - len([module for module in missing if not module.endswith(" (bias)")])
        if not matched and not loaded.words:
            raise BadInput(
                f"adapter {name}", "has no module that is part of this base", "choose another base"
            )
        blobs = [Blob(parts, dtype, self._family.device) for dtype, parts in loras.items()]
        size = sum(blob.nbytes for blob in blobs) + sum(_nbytes(factors) for _, _, factors in others)
        return _Kept(
            LoadReport(matched, missing, loaded.ignored, name=name), loaded.words, blobs, others, size
        )

    def _make_ready(self, name: str, kept: _Kept) -> None:
        """Other methods' factors onto the device, with what depends on W worked out."""
        if kept.ready is None:
            try:
                kept.ready = [(module, spot, self._change(spot, item)) for module, spot, item in kept.others]
            except BadInput as error:
                raise BadInput(f"adapter {name}, {error.thing}", error.wrong, error.do) from error

    def _change(self, spot: Spot, item: Factors | Array) -> Any:
        site = Site(spot.base, spot.shape, self._family.device, spot.dtype)
        if spot.is_norm:
            return _norm(item, site)
        return added_bias(item, site) if isinstance(item, np.ndarray) else addition(item, site)

    def _pin_new(self) -> None:
        if self._family.device.type == "cuda":
            for kept, _, _ in self._acting:
                for blob in kept.blobs if not kept.pinned else ():
                    blob.pin()
                kept.pinned = True

    def _drop_old(self, needed: set[str]) -> None:
        """The longest unused adapters leave while there are too many bytes, never a needed one."""
        idle = [key for key in self._kept if key not in needed]
        for key in idle[: max(0, len(idle) - KEPT_READY)]:
            self._kept[key].ready = None
        total = self.nbytes
        for key in idle:
            if total <= self._budget:
                return
            total -= self._kept.pop(key).nbytes


class FollowSchedules:
    """A `Change` of the denoising loop: adapters act at each step as their schedules say.

    Args:
        stack: The adapters of the base.
        total: How many steps the pass has.
    """

    def __init__(self, stack: AdapterStack, total: int) -> None:
        self._stack, self._total = stack, total

    def before(self, number: int, t: Any, x: Any) -> Mapping[str, Any]:
        """Set the strengths of step `number`; the denoiser is told nothing else."""
        del t, x
        self._stack.at(number / self._total)
        return {}

    def after(self, number: int, t_next: Any, x: Any) -> Any:
        """The latents as they are."""
        del number, t_next
        return x


def _norm(item: Factors | Array, site: Site) -> NormChange:
    if isinstance(item, np.ndarray):
        return norm_change(None, item, site)
    assert isinstance(item, FullFactors)
    return norm_change(item.diff, None, site)


def _nbytes(factors: Any) -> int:
    """Of all arrays in factors of any method."""
    if isinstance(factors, np.ndarray):
        return factors.nbytes
    values = vars(factors).values() if hasattr(factors, "__dict__") else ()
    return sum(_nbytes(value) for value in values)


def _host_budget() -> int:
    import psutil

    return int(min(HOST_MOST, psutil.virtual_memory().total * HOST_SHARE))
