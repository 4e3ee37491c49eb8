"""Adapters on a base of every family: exact, additive, switched without a trace, by block and by step."""

import gc
import re
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file
from safetensors.torch import save_file as save_torch

from registry.errors import BadInput
from registry.formats.export import export_adapter
from registry.formats.load import load_adapter
from registry.formats.operations.strength import make_strength
from studio.sampling.layers import AdaptedLayer, AdaptedNorm
from studio.sampling.loading import load_exactly, load_parts
from studio.sampling.packed import Blob, Pack
from studio.sampling.spots import Spots
from studio.sampling.stack import AdapterStack, AdapterUseInStack, FollowSchedules
from tests.support.adapters import make_form, write_run_file
from tests.support.bases import save_base
from tests.support.methods import draw, load
from trainers.families import FAMILIES

LAYERS = re.compile(
    r"(to_q|to_k|to_v|to_out\.0|add_k_proj|proj_in|proj_mlp|blocks\.\d+\.proj_out|net\.2|conv1|q_proj|out_proj|fc1)$"
)
COPIED = [False, True]  # read from host memory, or copied as on a GPU


def shapes(model) -> dict[str, tuple[int, ...]]:
    """Weight shapes of layers of every kind, by the names of adapter files."""
    found = {}
    parts = {model.denoiser_name: model.denoiser} | {n: model.part(n) for n in model.clip_encoders}
    for component, part in parts.items():
        for name, module in part.named_modules():
            if LAYERS.search(name) and isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                root = "text_model." if name.startswith("encoder.layers") else ""
                found[f"{component}.{root}{name}"] = tuple(module.weight.shape)
    return found


def adapter(model, path: Path, seed: int, layout: str = "diffusers") -> Path:
    """A file with random factors for every kind of layer; without a layout as a run leaves it."""
    made = make_form(shapes(model), family=model.name, seed=seed, rank=3, alpha=2.0)
    run = write_run_file(made, path.with_suffix(".run") if layout else path)
    if not layout:
        return run
    export_adapter(run, path, layout, family=model.name)
    return path


def use(path: Path, weight: float = 1.0, text: float | None = None, **more) -> AdapterUseInStack:
    return AdapterUseInStack(path.stem, path, path.stem, weight, weight if text is None else text, **more)


def merged(model, uses: list[AdapterUseInStack], moving: float = 1.0) -> torch.Tensor:
    """What the model draws with the changes added to its own weights; leaves it changed."""
    layers = {
        name: dict(model.part(name).named_modules()) for name in (model.denoiser_name, *model.clip_encoders)
    }
    for item in uses:
        blocks = ",".join(f"{name}={factor}" for name, factor in item.blocks.items())
        strength = make_strength(item.weight, item.text_weight, blocks)
        form, _, _ = load_adapter(item.path, model.name)
        for module in form.modules:
            component, _, path = module.partition(".")
            known = layers[component]
            spelled = path if component in ("unet", "transformer") else path.removeprefix("text_model.")
            layer = known[spelled] if spelled in known else known[path]
            factor = moving if component == model.denoiser_name else 1.0
            delta = torch.from_numpy(strength.of(model.name, module) * factor * form.delta(module))
            layer.weight.data += delta.reshape(layer.weight.shape).float()
    return draw(model)


@pytest.fixture(scope="module", params=list(FAMILIES))
def base(request, tmp_path_factory):
    """(family, folder of its toy base, two adapter files for it)"""
    folder = request.getfixturevalue(f"tiny_{request.param}")
    model = load(request.param, folder)
    place = tmp_path_factory.mktemp(request.param)
    files = [adapter(model, place / f"{name}.safetensors", seed) for seed, name in enumerate(("ink", "wash"))]
    return request.param, folder, files


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("copied", COPIED)
def test_one_adapter_is_what_diffusers_loads(base, copied):
    family, folder, (ink, _) = base
    pipe = FAMILIES[family].load_class().pipeline_class().from_pretrained(folder, local_files_only=True)
    pipe.load_lora_weights(ink.parent, weight_name=ink.name)
    theirs = load(family, folder)
    for name in (theirs.denoiser_name, *theirs.text_encoder_names):
        theirs.put(name, getattr(pipe, name).eval())
    ours = load(family, folder)
    plain = draw(ours)
    (report,) = AdapterStack(ours, copied=copied).use([use(ink)])
    assert report.complete
    assert report.matched == len(shapes(load(family, folder)))
    expected = draw(theirs)
    assert (expected - plain).abs().max() > 1e-2
    torch.testing.assert_close(draw(ours), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("copied", COPIED)
def test_two_adapters_are_the_sum_and_the_base_comes_back(base, copied):
    family, folder, (ink, wash) = base
    model = load(family, folder)
    plain = draw(model)
    stack = AdapterStack(model, copied=copied)
    both = [use(ink, 0.7, 0.4), use(wash, -0.5)]
    stack.use(both)
    together = draw(model)
    torch.testing.assert_close(together, merged(load(family, folder), both), atol=1e-4, rtol=1e-4)
    stack.use([use(ink, 0.0), use(wash, 0.0)])
    assert torch.equal(draw(model), plain)
    stack.use([use(ink), use(wash, 0.0)])
    alone = draw(model)
    for number in range(36):
        stack.use([use(ink, number / 18), use(wash)][number % 2 : number % 3 + 1])
    stack.use([use(ink)])
    assert torch.equal(draw(model), alone)
    stack.use(both)
    assert torch.equal(draw(model), together)
    stack.use([])
    assert torch.equal(draw(model), plain)
    fresh = load(family, folder)
    AdapterStack(fresh, copied=copied).use(both)
    assert torch.equal(draw(fresh), together), "what was drawn before must make no difference"
    stack.clear()
    parts = (model.denoiser, *model.text_encoders.values())
    assert not any(isinstance(m, AdaptedLayer | AdaptedNorm) for part in parts for m in part.modules())
    assert torch.equal(draw(model), plain)


@pytest.mark.parametrize("copied", COPIED)
def test_weights_by_block_mean_what_they_mean_in_a_merge(base, copied):
    family, folder, (ink, wash) = base
    blocks = {"OUT": 0.3, "MID": 0.0, "DOUBLE": 0.3, "SINGLE": 0.0, "JOINT00": -1.0, "TE": 0.5, "*to_k": 2.0}
    uses = [use(ink, 0.8, blocks=blocks), use(wash, 0.5)]
    model = load(family, folder)
    AdapterStack(model, copied=copied).use(uses)
    without = load(family, folder)
    AdapterStack(without).use([use(ink, 0.8), use(wash, 0.5)])
    assert (draw(model) - draw(without)).abs().max() > 1e-3
    torch.testing.assert_close(draw(model), merged(load(family, folder), uses), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("copied", COPIED)
def test_a_schedule_moves_the_denoiser_alone(base, copied):
    family, folder, (ink, _) = base
    model = load(family, folder)
    stack = AdapterStack(model, copied=copied)
    stack.use([use(ink)])
    full = draw(model)
    scheduled = [use(ink, schedule=((0.2, 0.0), (0.6, 1.0)))]
    stack.use(scheduled)
    expected = {factor: merged(load(family, folder), scheduled, factor) for factor in (0.0, 0.25, 1.0)}
    for fraction, factor in ((0.0, 0.0), (0.2, 0.0), (0.3, 0.25), (0.6, 1.0), (1.0, 1.0)):
        FollowSchedules(stack, 10).before(round(10 * fraction), None, None)
        torch.testing.assert_close(draw(model), expected[factor], atol=1e-4, rtol=1e-4)
    assert torch.equal(draw(model), full)


@pytest.mark.parametrize("copied", COPIED)
def test_what_a_schedule_leaves_out_is_the_base_to_the_bit(copied, tiny_sd15, tmp_path):
    model = load("sd15", tiny_sd15)
    file = adapter(model, tmp_path / "ink.safetensors", 1)
    plain = draw(model)
    stack = AdapterStack(model, copied=copied)
    stack.use([use(file, text=0.0, schedule=((0.5, 0.0), (0.5, 1.0)))])
    assert torch.equal(draw(model), plain)
    stack.at(0.5)
    assert not torch.equal(draw(model), plain)
    stack.at(0.2)
    assert torch.equal(draw(model), plain)


def test_biases_and_norms_act(tiny_sd15, tmp_path):
    """Full changes of layers and norms, and biases also where the base has none."""
    random = np.random.default_rng(0)
    block = "unet.down_blocks.0.attentions.0.transformer_blocks.0"
    modules = [
        f"{block}.attn1.to_q", f"{block}.ff.net.2", f"{block}.norm1", "unet.down_blocks.0.resnets.0.norm1",
        "unet.down_blocks.0.resnets.0.conv1", "text_encoder.encoder.layers.0.layer_norm1",
    ]  # fmt: skip
    model, changed = load("sd15", tiny_sd15), load("sd15", tiny_sd15)
    tensors: dict[str, np.ndarray] = {}
    for name in modules:
        component, _, path = name.partition(".")
        layer = changed.part(component).get_submodule(path)
        delta = (random.normal(size=tuple(layer.weight.shape)) / 8).astype(np.float32)
        bias = (random.normal(size=layer.weight.shape[0]) / 4).astype(np.float32)
        norm = layer.weight.ndim == 1
        tensors[f"{name}.{'w_norm' if norm else 'diff'}"] = delta
        tensors[f"{name}.{'b_norm' if norm else 'diff_b'}"] = bias
        layer.weight.data += 0.5 * torch.from_numpy(delta)
        added = 0.5 * torch.from_numpy(bias)
        layer.bias = torch.nn.Parameter(added if layer.bias is None else layer.bias.data + added)
    path = tmp_path / "full.safetensors"
    save_file(tensors, path)
    plain = draw(model)
    stack = AdapterStack(model)
    (report,) = stack.use([use(path, 0.5)])
    assert (report.matched, report.unmatched, report.dropped) == (len(modules), (), ())
    assert (draw(model) - plain).abs().max() > 1e-2
    torch.testing.assert_close(draw(model), draw(changed), atol=1e-5, rtol=1e-4)
    stack.use([use(path, 0.0)])
    assert torch.equal(draw(model), plain)


def test_what_has_no_place_and_what_nobody_understands_is_reported(tiny_sd15, tmp_path):
    model = load("sd15", tiny_sd15)
    tensors = load_file(adapter(model, tmp_path / "ink.safetensors", 1, "kohya"))
    deep = "lora_unet_down_blocks_3_attentions_0_proj_in"
    tensors |= {f"{deep}.lora_down.weight": torch.ones(2, 8), f"{deep}.lora_up.weight": torch.ones(8, 2)}
    tensors |= {"lora_unet_nowhere.lora_down.weight": torch.ones(2, 8)}
    save_torch(tensors, tmp_path / "odd.safetensors")
    (report,) = AdapterStack(model).use([use(tmp_path / "odd.safetensors")])
    assert report.unmatched == ("unet.down_blocks.3.attentions.0.proj_in",)
    assert report.dropped == ("lora_unet_nowhere.lora_down.weight",)
    assert report.matched == len(shapes(load("sd15", tiny_sd15)))
    assert not report.complete


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("family", ["sd15", "flux1"])
def test_the_short_way_reads_what_the_long_way_reads(family, dtype, layout, request, tmp_path):
    model = load(family, request.getfixturevalue(f"tiny_{family}"))
    run = write_run_file(make_form(shapes(model), family=family, alpha=3.0), tmp_path / "run.safetensors")
    path = tmp_path / "out.safetensors"
    export_adapter(run, path, layout, family=family, dtype=dtype)
    for file in (path, run):
        short, long = load_parts(file, family), load_exactly(file, family)
        assert not short.checked
        assert short.loras.keys() == long.loras.keys()
        assert short.loras.keys() >= shapes(model).keys()
        for module, part in short.loras.items():
            other = long.loras[module]
            assert part.scale == other.scale
            assert torch.equal(part.down.float(), other.down)
            assert torch.equal(part.up.float(), other.up)


@pytest.mark.parametrize("family", ["sd15", "sd35"])
def test_folders_of_peft_are_read_the_short_way_too(family, request, tmp_path):
    """Their strength is in the configuration beside them, the text encoder in the folder's name."""
    model = load(family, request.getfixturevalue(f"tiny_{family}"))
    form = make_form(shapes(model), family=family, alpha=3.0)
    export_adapter(
        write_run_file(form, tmp_path / "run.safetensors"), tmp_path / "out", "peft", family=family
    )
    read = {}
    for file in (tmp_path / "out").rglob("adapter_model.safetensors"):
        short, long = load_parts(file, family), load_exactly(file, family)
        assert (short.checked, short.loras.keys()) == (False, long.loras.keys())
        read |= short.loras
        for module, part in short.loras.items():
            assert part.scale == long.loras[module].scale
            assert torch.equal(part.down.float(), long.loras[module].down)
    assert read.keys() == form.modules.keys()
    for module, part in read.items():
        made = part.scale * part.up @ part.down
        torch.testing.assert_close(made.flatten(), torch.from_numpy(form.delta(module)).flatten())


def test_values_that_are_no_numbers_are_refused_by_name(tiny_sd15, tmp_path):
    model = load("sd15", tiny_sd15)
    tensors = load_file(adapter(model, tmp_path / "ink.safetensors", 1))
    name = sorted(tensors)[3]
    tensors[name].view(-1)[1] = float("inf")
    save_torch(tensors, tmp_path / "bad.safetensors")
    plain = draw(model)
    stack = AdapterStack(model)
    with pytest.raises(BadInput, match=re.escape(f"not finite in tensor '{name}'")):
        stack.use([use(tmp_path / "bad.safetensors")])
    assert torch.equal(draw(model), plain)
    half = load("sd15", tiny_sd15, torch.float16)
    tensors[name].view(-1)[1] = 1e5
    save_torch(tensors, tmp_path / "large.safetensors")
    with pytest.raises(BadInput, match="too large for float16"):
        AdapterStack(half).use([use(tmp_path / "large.safetensors")])


def test_memory_stays_where_it_is(tiny_sd15, tmp_path):
    """Seven adapters take turns in room for four; nothing is left behind."""
    model = load("sd15", tiny_sd15)
    files = [adapter(model, tmp_path / f"{n}.safetensors", n, "") for n in range(7)]
    stack = AdapterStack(model, copied=True)
    stack.use([use(files[0])])
    one = stack.nbytes
    stack.clear()
    stack = AdapterStack(model, copied=True, budget=4 * one)
    tensors, resident = [], []
    for turn in range(8):
        for number in range(7):
            wanted = [use(files[number]), use(files[(number + 1 + turn % 2) % 7], 0.5)]
            stack.use(wanted[: 1 + number % 2])
            assert stack.nbytes <= 4 * one
        gc.collect()
        tensors.append(sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects()))
        resident.append(psutil.Process().memory_info().rss)
    assert tensors[-1] <= tensors[3]
    assert resident[-1] <= 1.05 * resident[3]


def test_ranks_are_filled_up_with_zeros_for_a_gpu(tiny_sd15, tmp_path):
    """The layout that a GPU gets, on the CPU: rank 3 in the place of 8, one and two adapters."""
    model, other = load("sd15", tiny_sd15), load("sd15", tiny_sd15)
    spots, parts = Spots(model), []
    files = [adapter(model, tmp_path / f"{n}.safetensors", n, "") for n in range(2)]
    for file in files:
        loras = load_parts(file, "sd15").loras
        parts.append([(name, spots.find(name), part) for name, part in loras.items()])
    blobs = [Blob(part, torch.float32, torch.device("cuda")) for part in parts]  # only the kind is asked for
    assert set(blobs[0].ranks.tolist()) == {8}
    pack = Pack(torch.device("cpu"), torch.float32, copied=True)
    for spot in blobs[0].spots:
        spot.wrap()
    stack = AdapterStack(other)
    for chosen in ([0], [0, 1], [1]):
        pack.show([blobs[n] for n in chosen], [np.full(len(blobs[n].spots), 0.5) for n in chosen])
        pack.at([1.0 for _ in chosen])
        stack.use([use(files[n], 0.5) for n in chosen])
        torch.testing.assert_close(draw(model), draw(other), atol=1e-5, rtol=1e-4)


def test_on_the_cpu_factors_rest_in_the_16_bits_of_their_file(tmp_path):
    """Widened as they are read, which is exact: the same bits as from a file that has them wide."""
    model = load("sd15", save_base("sd15", tmp_path / "base"))
    layers = dict(model.denoiser.named_modules())
    generator, tensors = torch.Generator().manual_seed(3), {}
    for name in ("down_blocks.0.resnets.0.conv1", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"):
        shape = layers[name].weight.shape
        for half, sides in (("A", (3, *shape[1:])), ("B", (shape[0], 3, *[1] * (len(shape) - 2)))):
            tensors[f"unet.{name}.lora_{half}.weight"] = torch.randn(sides, generator=generator).half()
    drawn, taken = [], []
    for dtype in (torch.float16, torch.float32):
        path = tmp_path / f"{dtype}.safetensors"
        save_torch({key: value.to(dtype) for key, value in tensors.items()}, path)
        stack = AdapterStack(model)
        stack.use([AdapterUseInStack("a", path, "a", 0.7, 0.7)])
        drawn.append(draw(model))
        taken.append(stack.nbytes)
        stack.clear()
    assert torch.equal(*drawn)
    assert not torch.equal(drawn[0], draw(model))
    assert 2 * taken[0] == taken[1]
