"""The parts of one module, as a file has them, made into factors that fit each other."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from registry.errors import BadInput
from registry.formats.factors import DoraFactors, Factors, LohaFactors, LokrFactors, OftBlocks, OftFactors
from registry.formats.grammar import LOHA, LOKR
from registry.formats.internal import LoraFactors, make_factors
from registry.formats.rows import FullFactors
from registry.formats.tensors import Array

LARGEST = (
    1 << 28
)  # entries of a weight; a T5 of FLUX has 42 million, and a Kronecker product can claim any number
_AGAIN = "ask its author for a sound file"


@dataclass(frozen=True)
class Strength:
    """What is known of a module's strength beside its own keys.

    Args:
        alpha: None = nothing is said.
        rank: Of the configuration, 0 = unknown; matters for whole factors of LoKr alone.
        config: PEFT's configuration of the component, of our own files.
    """

    alpha: float | None = None
    rank: int = 0
    config: Mapping[str, Any] | None = None


def build(where: str, parts: Mapping[str, Array], strength: Strength) -> LoraFactors | Factors | None:
    """The factors of a module; None when its keys are only a bias's.

    Args:
        where: Names the module in errors.
        parts: As `grammar.split_key` calls them.
        strength: What the metadata says; the module's own `alpha` counts before it.

    Raises:
        BadInput: factors are missing or do not fit each other.
    """
    try:
        factors = _build(where, parts, strength)
        if factors is not None and not isinstance(factors, LoraFactors):
            _check(where, factors, parts)
    except BadInput:
        raise
    except (KeyError, IndexError) as error:
        raise BadInput(where, "lacks some of its factors", _AGAIN) from error
    except ValueError as error:
        shapes = ", ".join(str(value.shape) for value in parts.values())
        raise BadInput(where, f"has factors of shapes {shapes} that do not fit", _AGAIN) from error
    return factors


def scalar_of(where: str, parts: Mapping[str, Array], part: str) -> float | None:
    """Value of a part that is one number; None when it is not there.

    Raises:
        BadInput: it is several numbers or none: going on would mean a strength that nobody wrote.
    """
    value = parts.get(part)
    if value is None:
        return None
    if value.size != 1:
        raise BadInput(where, f"has {value.size} numbers as its {part}, not one", _AGAIN)
    return float(value.reshape(-1)[0])


def _build(where: str, parts: Mapping[str, Array], strength: Strength) -> LoraFactors | Factors | None:
    alpha = scalar_of(where, parts, "alpha")
    alpha = strength.alpha if alpha is None else alpha
    if "oft_R" in parts:
        config = strength.config or {}
        neumann = config.get("use_cayley_neumann", True)
        return OftFactors(parts["oft_R"], int(config.get("num_cayley_neumann_terms", 5)) if neumann else 0)
    if "oft_blocks" in parts:
        return OftBlocks(parts["oft_blocks"], alpha or 0.0, parts.get("rescale"))
    if "diff" in parts or "w_norm" in parts:
        diff = parts["diff"] if "diff" in parts else parts["w_norm"]
        return FullFactors(diff, "norm" if diff.ndim == 1 else "full")
    if "hada_w1_a" in parts:
        inner = _loha(parts, alpha)
    elif "lokr_w1" in parts or "lokr_w1_a" in parts:
        inner = _lokr(parts, alpha, strength.rank)
    elif "down" in parts or "up" in parts:
        inner = _lora(where, parts, alpha)
    elif "diff_b" in parts or "b_norm" in parts:
        return None
    else:
        raise KeyError
    magnitude = "dora_scale" if "dora_scale" in parts else "lora_magnitude_vector"
    return _dora(where, inner, parts, magnitude) if magnitude in parts else inner


def _lora(where: str, parts: Mapping[str, Array], alpha: float | None) -> LoraFactors:
    """LoRA; a core (Tucker) is multiplied into `down`, which is exact and keeps the rank."""
    down, up, scale = parts.get("down"), parts.get("up"), scalar_of(where, parts, "scale")
    if scale is not None and down is not None and alpha is None:
        alpha = scale * down.shape[0]
    if "mid" in parts and down is not None:
        core = parts["mid"]
        if core.ndim != 4 or core.shape[1] != down.shape[0] or down.size != down.shape[0] * down.shape[1]:
            raise ValueError
        flat = down.reshape(down.shape[0], -1)
        down = np.einsum("ijkl,jc->ickl", core, flat, optimize=True).astype(np.float32)
    return make_factors(where, down, up, alpha)


def _loha(parts: Mapping[str, Array], alpha: float | None) -> LohaFactors:
    w1_a, w1_b, w2_a, w2_b = (parts[name] for name in LOHA[:4])
    strength = float(w1_b.shape[0]) if alpha is None else alpha
    return LohaFactors(w1_a, w1_b, w2_a, w2_b, strength, parts.get("hada_t1"), parts.get("hada_t2"))


def _lokr(parts: Mapping[str, Array], alpha: float | None, rank: int) -> LokrFactors:
    values: dict[str, Any] = {name.removeprefix("lokr_"): parts.get(name) for name in LOKR}
    if values["w1"] is None and values["w1_b"] is None:
        raise KeyError
    if values["w2"] is None and (values["w2_a"] is None or values["w2_b"] is None):
        raise KeyError
    made = LokrFactors(alpha=alpha or 0.0, **values)
    if not made.rank:
        return replace(made, whole_scale=alpha / rank if rank and alpha is not None else 1.0)
    return made if alpha is not None else replace(made, alpha=float(made.rank))


def _dora(
    where: str, inner: LoraFactors | LohaFactors | LokrFactors, parts: Mapping[str, Array], name: str
) -> DoraFactors:
    """Of every shape: (out,) or (1, out, 1, 1) of PEFT, (out, 1) of LyCORIS 4, (1, in) of older ones."""
    magnitude = parts[name]
    rows = inner.up.shape[0] if isinstance(inner, LoraFactors) else inner.shape[0]
    peft = magnitude.ndim == 1 or name == "lora_magnitude_vector"
    per_output = peft or magnitude.shape[0] == rows
    if per_output and magnitude.size != rows:
        raise BadInput(where, f"has magnitudes of shape {magnitude.shape} for {rows} outputs", _AGAIN)
    if not per_output and (magnitude.shape[0] != 1 or _inputs(inner) % magnitude.size):
        raise BadInput(where, f"has magnitudes of shape {magnitude.shape} for its inputs", _AGAIN)
    return DoraFactors(inner, magnitude.reshape(-1), per_output)


def _inputs(inner: LoraFactors | LohaFactors | LokrFactors) -> int:
    return inner.down.size // inner.rank if isinstance(inner, LoraFactors) else inner.shape[1]


def _check(where: str, factors: Factors, parts: Mapping[str, Array]) -> None:
    """Shapes only: making the weight of a large module costs a second."""
    if any(part.size == 0 for part in parts.values()):
        raise BadInput(where, "has an empty factor", _AGAIN)
    inner = factors.inner if isinstance(factors, DoraFactors) else factors
    if isinstance(inner, LohaFactors):
        _require(_sides(inner.w1_a, inner.w1_b, inner.t1) == _sides(inner.w2_a, inner.w2_b, inner.t2))
    elif isinstance(inner, LokrFactors):
        _require(
            _kronecker(inner.w1, inner.w1_a, inner.w1_b, None)
            and _kronecker(inner.w2, inner.w2_a, inner.w2_b, inner.t2)
        )
    elif isinstance(inner, OftBlocks):
        blocks, rescale = inner.blocks, inner.rescale
        if blocks.ndim == 4:
            raise BadInput(
                where, "holds boft weights", "only LoRA, DoRA, LoHa, LoKr, OFT and full can be read"
            )
        _require(blocks.ndim == 3 and blocks.shape[1] == blocks.shape[2])
        _require(rescale is None or rescale.size == inner.shape[0])
    elif isinstance(inner, OftFactors):
        b = inner.block if inner.vectors.ndim == 2 else 0
        _require(b * (b - 1) // 2 == inner.vectors.shape[-1] and inner.vectors.ndim == 2)
    elif isinstance(inner, FullFactors):
        _require(inner.diff.ndim in {1, 2, 4})
    rows, columns = factors.shape
    if rows * columns > LARGEST:
        raise BadInput(where, f"claims a weight of {rows} x {columns}", _AGAIN)


def _require(fits: bool) -> None:
    if not fits:
        raise ValueError


def _sides(a: Array, b: Array, core: Array | None) -> tuple[int, ...]:
    """(rows, columns, *kernel) of a product; raises when the factors do not fit."""
    _require(a.ndim == b.ndim == 2)
    if core is None:
        _require(a.shape[1] == b.shape[0])
        return a.shape[0], b.shape[1]
    _require(core.ndim == 4 and core.shape[:2] == (a.shape[0], b.shape[0]))
    return a.shape[1], b.shape[1], *core.shape[2:]


def _kronecker(whole: Array | None, a: Array | None, b: Array | None, core: Array | None) -> bool:
    if whole is not None:
        return whole.ndim in {2, 4}
    if a is None or b is None:
        raise KeyError
    return bool(_sides(a, b, core))
