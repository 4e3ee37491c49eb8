"""Every grammar for every family at the true names and shapes: what it is, and what it changes."""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from registry.formats.factors import change_of
from registry.formats.families import FORMATS
from registry.formats.inspect import inspect_adapter
from registry.formats.internal import AdapterForm, LoraFactors
from registry.formats.load import load_adapter
from registry.formats.original import SGM, Place
from registry.formats.tensors import save
from registry.formats.tools import relative_error
from tests.support.corpus import GRAMMARS, layers, narrowed, of_kohya

RANK, ALPHA = 2, 0.5
CASES = [(family, name) for name, grammar in GRAMMARS.items() for family in grammar.families]
VARIANTS = {"sd35": "medium", "flux1": "dev"}


@cache
def pool() -> tuple[np.ndarray, np.ndarray]:
    """A million random numbers as a file of half precision holds them, and as they are read."""
    stored = np.random.default_rng(3).standard_normal(1 << 20, np.float32).astype(np.float16)
    return stored, stored.astype(np.float32)


def drawing() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Gives arrays of a shape, stored and read; each begins elsewhere in the pool."""
    taken = 0

    def draw(*shape: int) -> tuple[np.ndarray, np.ndarray]:
        nonlocal taken
        count = math.prod(shape)
        start = taken % (len(pool()[0]) - count)
        taken += count + 1
        stored, read = (numbers[start : start + count].reshape(shape) for numbers in pool())
        return stored, read

    return draw


def written(family: str, name: str, path: Path, shapes: dict[str, tuple[int, ...]]) -> AdapterForm:
    """A LoRA on all of `shapes` in one grammar; what it should come back as."""
    grammar, names = GRAMMARS[name], FORMATS[family]
    drawn = drawing()
    tensors: dict[str, np.ndarray] = {}
    wanted: dict[str, LoraFactors] = {}
    for key, component, place in grammar.places(family, shapes):
        parts = [shapes[f"{component}.{module}"] for module in place.modules]
        rows, (_, *inside) = sum(shape[0] for shape in parts), parts[0]
        tensors[f"{key}.{grammar.down}"], down = drawn(RANK, *inside)
        tensors[f"{key}.{grammar.up}"], up = drawn(rows, RANK, *[1] * (len(inside) - 1))
        if grammar.alpha:
            tensors[f"{key}.alpha"] = np.array(ALPHA, np.float32)
        edges = np.cumsum([0, *(shape[0] for shape in parts)])
        for module, start, stop in zip(place.modules, edges, edges[1:], strict=False):
            taken = up[start:stop]
            if place.halves and len(taken) == 2 * inside[0]:
                taken = np.concatenate(np.split(taken, 2)[::-1])
            wanted[f"{component}.{module}"] = LoraFactors(down, taken, ALPHA if grammar.alpha else RANK)
    assert names.denoiser in {module.partition(".")[0] for module in wanted}
    save(path, tensors, {})
    return AdapterForm(family, wanted)


@pytest.mark.parametrize(("family", "name"), CASES)
def test_every_module_is_found_and_its_change_is_right(family, name, tmp_path):
    path = tmp_path / "a.safetensors"
    wanted = written(family, name, path, layers(family))
    form, facts, _ = load_adapter(path)
    variant = "" if name == "xlabs" else VARIANTS.get(family, "")  # nothing in attention tells dev
    assert (facts.family, facts.confidence, facts.variant) == (family, "high", variant)
    assert (facts.method, facts.rank, facts.ignored, form.ignored) == ("lora", RANK, (), ())
    assert facts.alpha == (ALPHA if GRAMMARS[name].alpha else RANK)
    assert form.modules.keys() == wanted.modules.keys()
    assert form.targets == facts.targets == wanted.components
    for module, item in wanted.modules.items():
        got = form.modules[module]
        assert same(got, item) or relative_error(got, item) < 1e-5, module


def same(one: LoraFactors, other: LoraFactors) -> bool:
    """Bit for bit, which is cheaper to see than a norm."""
    halves = ((one.down, other.down), (one.up, other.up))
    return one.alpha == other.alpha and all(np.array_equal(*pair) for pair in halves)


# Modules of kohya's networks, convolutions included: of the denoiser, and with the text encoders. FLUX.1 has
# 304 in its blocks and 8 embedders.
@pytest.mark.parametrize(
    ("family", "denoiser", "everything"),
    [("sd15", 278, 350), ("sdxl", 788, 1052), ("sd35", 271, 703), ("flux1", 304 + 8, 552)],
)
def test_kohya_names_hit_every_module_of_kohya_s_networks(family, denoiser, everything, tmp_path):
    shapes = of_kohya(family)
    written(family, "kohya", tmp_path / "a.safetensors", shapes)
    facts = inspect_adapter(tmp_path / "a.safetensors")
    form, _, _ = load_adapter(tmp_path / "a.safetensors")
    assert form.modules.keys() == shapes.keys()
    texts = sum(module.startswith("text_encoder") for module in shapes)
    assert (facts.modules - texts, facts.modules) == (denoiser, everything)


Builder = Callable[[np.random.Generator, tuple[int, ...]], tuple[dict[str, np.ndarray], "Change"]]
Change = Callable[[np.ndarray], np.ndarray]  # W (out, in kh kw) -> W' - W


def noise(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.standard_normal(shape, np.float32)


def flat(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[0], int(np.prod(shape[1:]))


def adds(delta: np.ndarray) -> Change:
    return lambda _: delta.reshape(len(delta), -1)


def lora(random: np.random.Generator, shape: tuple[int, ...]) -> tuple[dict[str, np.ndarray], Change]:
    ones = [1] * (len(shape) - 2)
    down, up = noise(random, 2, *shape[1:]), noise(random, shape[0], 2, *ones)
    delta = 1.5 * up.reshape(len(up), 2) @ down.reshape(2, -1)
    return {"lora_down.weight": down, "lora_up.weight": up, "alpha": scalar(3.0)}, adds(delta)


def tucker(random: np.random.Generator, shape: tuple[int, ...]) -> tuple[dict[str, np.ndarray], Change]:
    if len(shape) == 2:
        return lora(random, shape)
    core = noise(random, 2, 2, *shape[2:])
    down, up = noise(random, 2, shape[1], 1, 1), noise(random, shape[0], 2, 1, 1)
    delta = np.einsum("oi,ijkl,jc->ockl", up[:, :, 0, 0], core, down[:, :, 0, 0])
    parts = {"lora_down.weight": down, "lora_mid.weight": core, "lora_up.weight": up, "alpha": scalar(2.0)}
    return parts, adds(delta)


def loha(random: np.random.Generator, shape: tuple[int, ...]) -> tuple[dict[str, np.ndarray], Change]:
    rows, columns = flat(shape)
    a, c = noise(random, rows, 2), noise(random, rows, 2)
    b, d = noise(random, 2, columns), noise(random, 2, columns)
    parts = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d, "alpha": scalar(1.0)}
    return parts, adds(0.5 * (a @ b) * (c @ d))


def lokr(random: np.random.Generator, shape: tuple[int, ...]) -> tuple[dict[str, np.ndarray], Change]:
    """w2 whole, as large layers have it, or in two factors; sides that do not end where fused layers do."""
    rows, columns = flat(shape)
    one, two = (next(n for n in (4, 2, 1) if side % n == 0) for side in (rows, shape[1]))
    w1, whole = noise(random, one, two), bool(random.integers(2))
    parts: dict[str, np.ndarray] = {"lokr_w1": w1, "alpha": scalar(3.0)}
    if whole:
        w2 = noise(random, rows // one, shape[1] // two, *shape[2:])
        return parts | {"lokr_w2": w2}, adds(np.kron(w1, w2.reshape(len(w2), -1)))
    a, b = noise(random, rows // one, 2), noise(random, 2, columns // two)
    return parts | {"lokr_w2_a": a, "lokr_w2_b": b}, adds(1.5 * np.kron(w1, a @ b))


def full(random: np.random.Generator, shape: tuple[int, ...]) -> tuple[dict[str, np.ndarray], Change]:
    diff = noise(random, *shape)
    return {"diff": diff}, adds(diff)


def dora(random: np.random.Generator, shape: tuple[int, ...]) -> tuple[dict[str, np.ndarray], Change]:
    parts, change = lora(random, shape)
    scale = np.abs(noise(random, shape[0], *[1] * (len(shape) - 1)))

    def dora_change(weight: np.ndarray) -> np.ndarray:
        turned = weight + change(weight)
        return scale.reshape(-1, 1) * turned / np.linalg.norm(turned, axis=1, keepdims=True) - weight

    return parts | {"dora_scale": scale}, dora_change


def old_dora(random: np.random.Generator, shape: tuple[int, ...]) -> tuple[dict[str, np.ndarray], Change]:
    parts, change = lora(random, shape)
    scale = np.abs(noise(random, 1, shape[1], *[1] * (len(shape) - 2)))

    def dora_change(weight: np.ndarray) -> np.ndarray:
        turned = (weight + change(weight)).reshape(shape[0], shape[1], -1)
        norm = np.sqrt((turned**2).sum((0, 2), keepdims=True))
        return (scale.reshape(1, -1, 1) * turned / norm).reshape(weight.shape) - weight

    return parts | {"dora_scale": scale}, dora_change


def oft(random: np.random.Generator, shape: tuple[int, ...]) -> tuple[dict[str, np.ndarray], Change]:
    """Blocks that end where fused layers do."""
    size = next(n for n in (4, 2, 1) if shape[0] // 21 % n == 0 or shape[0] % n == 0)
    size = size if shape[0] % (21 * size) == 0 or shape[0] % (6 * size) == 0 else 1 + (shape[0] % 2 == 0)
    blocks = noise(random, shape[0] // size, size, size) / 4

    def oft_change(weight: np.ndarray) -> np.ndarray:
        done = np.empty_like(weight)
        for number, block in enumerate(blocks):
            skew = (block - block.T).astype(np.float64)
            turn = (np.eye(size) + skew) @ np.linalg.inv(np.eye(size) - skew)
            rows = slice(number * size, number * size + size)
            done[rows] = turn.T @ weight[rows]
        return done - weight

    return {"oft_blocks": blocks, "alpha": scalar(0.0)}, oft_change


def scalar(value: float) -> np.ndarray:
    return np.array(value, np.float32)


METHODS: dict[str, Builder] = {
    "lora": lora, "tucker": tucker, "loha": loha, "lokr": lokr, "full": full, "dora": dora,
    "old dora": old_dora, "oft": oft,
}  # fmt: skip
SPELLED = ("kohya", "comfyui", "simpletuner", "onetrainer")


def fuses(family: str, name: str) -> bool:
    """Whether the grammar has layers that are several of ours."""
    return GRAMMARS[name].fused and FORMATS[family].original not in (None, SGM)


def carried(family: str, name: str, method: str) -> bool:
    """FLUX has no convolution for a core; magnitudes per input over fused rows are refused, see below."""
    return not (method == "tucker" and family == "flux1") and not (
        method == "old dora" and fuses(family, name)
    )


@pytest.mark.parametrize(
    ("family", "name", "method"),
    [(f, n, m) for n in SPELLED for f in GRAMMARS[n].families for m in METHODS if carried(f, n, m)],
)
def test_every_method_in_the_grammars_that_carry_it(family, name, method, tmp_path):
    grammar, fused = GRAMMARS[name], fuses(family, name)
    shapes = narrowed(layers(family))
    random = np.random.default_rng(7)
    tensors: dict[str, np.ndarray] = {}
    wanted: list[tuple[Place, str, Change, list[tuple[int, ...]]]] = []
    for number, (key, component, place) in enumerate(grammar.places(family, shapes)):
        unsure = method == "oft" and fused and "norm1_context" in place.modules[0]  # refused, see below
        if number % 5 or unsure:  # of each kind of module many are left
            continue
        parts = [shapes[f"{component}.{module}"] for module in place.modules]
        values, change = METHODS[method](random, (sum(shape[0] for shape in parts), *parts[0][1:]))
        tensors |= {f"{key}.{part}": value for part, value in values.items()}
        wanted.append((place, component, change, parts))
    save(tmp_path / "a.safetensors", tensors, {})
    form, facts, _ = load_adapter(tmp_path / "a.safetensors", family)
    assert facts.method == {"old dora": "dora"}.get(method, method)
    assert form.ignored == ()
    assert len(form.everything) == sum(len(parts) for *_, parts in wanted)
    for place, component, change, parts in wanted:
        weights = [noise(random, *flat(shape)) for shape in parts]
        changes = change(weight_of(place, weights))
        edges = np.cumsum([0, *(len(weight) for weight in weights)])
        for module, weight, start, stop in zip(place.modules, weights, edges, edges[1:], strict=False):
            expected = exchanged(place, changes[start:stop])
            got = change_of(form.everything[f"{component}.{module}"], weight)
            error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
            assert error < 1e-5, (module, error)


def weight_of(place: Place, weights: list[np.ndarray]) -> np.ndarray:
    """The weight as the published checkpoint has it."""
    return np.concatenate([exchanged(place, weight) for weight in weights])


def exchanged(place: Place, rows: np.ndarray) -> np.ndarray:
    halves = place.halves and len(rows) == 2 * rows.shape[1]
    return np.concatenate(np.split(rows, 2)[::-1]) if halves else rows
