"""Keys of adapter files, of every tool and age, as (name of a module, part).

    <name>.lora_down.weight, .lora_up.weight, .lora_mid.weight, .alpha      kohya, LyCORIS, OneTrainer
    <name>.lora_A.weight, .lora_B.weight, .lora_A.<adapter>.weight          PEFT, diffusers, ai-toolkit
    <name>.lora.down.weight, <name>_lora.down.weight,
    <name>.lora_linear_layer.down.weight, <name>_lora1.down.weight          older diffusers, XLabs
    <name>.hada_..., .lokr_..., .oft_blocks, .oft_R.weight, .dora_scale,
    .lora_magnitude_vector, .diff, .diff_b, .w_norm, .b_norm                LyCORIS, kohya, PEFT

What the names may be is in `families`.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Generic, TypeVar

from registry.formats.names import remembered

T = TypeVar("T")

LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
_ALONE = (
    *LOHA, *LOKR, "alpha", "scale", "dora_scale", "lora_magnitude_vector", "oft_blocks", "rescale", "diff",
    "diff_b", "w_norm", "b_norm",
)  # fmt: skip
_WITH_WEIGHT = {
    "lora_down": "down", "lora_A": "down", "lora_up": "up", "lora_B": "up", "lora_mid": "mid",
    "lora_magnitude_vector": "lora_magnitude_vector", "oft_R": "oft_R",
}  # fmt: skip
_OLD = {"down": "down", "up": "up"}
# Parts of methods that we cannot read -> the method.
_FOREIGN = {
    "on_input": "ia3", "ia3_l": "ia3", "a1": "glora", "b1": "glora", "oft_r": "old oft",
    "oft_diag": "old oft", "boft_R": "boft", "boft_s": "boft", "vera_lambda_b": "vera",
    "vera_lambda_d": "vera", "hra_u": "hra", "lora_E": "adalora", "fourierft_spectrum": "fourierft",
}  # fmt: skip


@remembered
def split_key(key: str) -> tuple[str, str]:
    """(name of the module, part); part "" for a key that belongs to no method that we read.

    The parts: down, up, mid, alpha, scale, up_bias, the names of LoHa's and LoKr's factors, dora_scale,
    lora_magnitude_vector, oft_blocks, oft_R, rescale, diff, diff_b, w_norm, b_norm.
    """
    head, _, last = key.rpartition(".")
    if last in _ALONE:
        return head, last
    before, _, middle = head.rpartition(".")
    if last != "weight":
        if middle in _ALONE:  # PEFT in memory: "hada_w1_a.<adapter>"
            return before, middle
        return (before, "up_bias") if last == "bias" and middle == "lora_B" else (key, "")
    if middle in _WITH_WEIGHT:
        return before, _WITH_WEIGHT[middle]
    name, _, first = before.rpartition(".")
    if middle in _OLD:
        if first in {"lora", "lora_linear_layer"}:
            return name, middle
        if first.endswith("_lora"):
            return before.removesuffix("_lora"), middle
        return (before, middle) if first.endswith(("_lora1", "_lora2")) else (key, "")
    return (name, _WITH_WEIGHT[first]) if first in _WITH_WEIGHT else (key, "")


def foreign_method(keys: Iterable[str]) -> str:
    """The method of a file that we cannot read, by its keys; "" when they say nothing."""
    for key in keys:
        pieces = key.removesuffix(".weight").rsplit(".", 2)[1:]
        if found := next((_FOREIGN[piece] for piece in pieces if piece in _FOREIGN), ""):
            return found
    return ""


@dataclass(frozen=True)
class Grouped(Generic[T]):
    """A file's keys by module: values, or shapes."""

    modules: dict[str, dict[str, T]] = field(default_factory=dict[str, dict[str, T]])  # name -> part -> value
    ignored: list[str] = field(default_factory=list[str])  # keys of no method that we read
    given: Collection[str] = ()  # keys, all of them

    @cached_property
    def keys(self) -> dict[str, list[str]]:
        """Those of each module."""
        found: dict[str, list[str]] = {name: [] for name in self.modules}
        for key in self.given:
            name, part = split_key(key)
            if part:
                found[name].append(key)
        return found


def grouped(values: Mapping[str, T]) -> Grouped[T]:
    """`values` by module and part."""
    groups: Grouped[T] = Grouped(given=values.keys())
    modules = groups.modules
    for key, (name, part), value in zip(values, map(split_key, values), values.values(), strict=True):
        if not part:
            groups.ignored.append(key)
        elif name in modules:
            modules[name][part] = value
        else:
            modules[name] = {part: value}
    return groups


def method_of(parts: Iterable[str]) -> str:
    """Method of one module: "dora", "loha", "lokr", "oft", "tucker", "lora", "full", "norm" or ""."""
    known = set(parts)
    if known & {"dora_scale", "lora_magnitude_vector"}:
        return "dora"
    return next((method for part, method in _METHODS if part in known), "")


_METHODS = (
    ("hada_w1_a", "loha"), ("lokr_w1", "lokr"), ("lokr_w1_a", "lokr"), ("oft_blocks", "oft"),
    ("oft_R", "oft"), ("mid", "tucker"), ("down", "lora"), ("up", "lora"), ("diff", "full"),
    ("diff_b", "full"), ("w_norm", "norm"), ("b_norm", "norm"),
)  # fmt: skip
