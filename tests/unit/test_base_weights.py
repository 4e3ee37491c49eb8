"""A base in 8 or 4 bits while an adapter learns: gradients, what is kept for the way back, runs, memory."""

import gc
import json
import shutil
import weakref
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from registry.errors import BadInput
from tests.support.runs import recipe, resume, write_run
from tests.support.trained_here import ShortMemory, equal, losses, set_here, tensors, train_here
from trainers.base_weights import Keeping, choose, load_part, parameters
from trainers.dry_run import let_go
from trainers.families.base import BaseFiles
from trainers.families.flux1 import Flux1
from trainers.families.sd import StableDiffusion15
from trainers.ladder import Rungs, first_rungs
from trainers.methods import attach
from trainers.metrics import Reporter
from trainers.run import run
from trainers.signals import StopFlag
from trainers.stored import ROUNDED, StoredConv2d, StoredLayer, StoredLinear, compress_part, store_part

CPU = torch.device("cpu")
TRAIN = {"train.max_steps": 2, "checkpoints.every": 1, "optimizer.lr": 1e-3}
METHODS = {
    "lora": {"adapter.conv_rank": 2},
    "dora": {"adapter.conv_rank": 2},
    "loha": {},
    "lokr": {},
    "oft": {"adapter.oft_block": 8, "adapter.alpha": None},
    "pissa": {},
}


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    set_here(monkeypatch)


LAYERS = {
    "linear": (lambda: nn.Linear(32, 48), StoredLinear, (3, 5, 32)),
    "conv": (lambda: nn.Conv2d(8, 12, 3, padding=1, stride=2), StoredConv2d, (2, 8, 9, 7)),
    "grouped": (
        lambda: nn.Conv2d(8, 12, 3, padding=2, dilation=2, groups=4, bias=False),
        StoredConv2d,
        (2, 8, 9, 7),
    ),
    "pointwise": (lambda: nn.Conv2d(8, 12, 1), StoredConv2d, (2, 8, 4, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("precision", ROUNDED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_is_that_of_the_rounded_weight_and_no_weight_is_kept(name, precision, dtype):
    torch.manual_seed(0)
    make, kind, shape = LAYERS[name]
    plain = make().to(dtype).requires_grad_(False)
    x = torch.randn(shape).to(dtype)
    same = make().to(dtype).requires_grad_(False)
    same.load_state_dict(plain.state_dict())
    stored = kind(plain, precision, CPU)
    same.weight.data = stored.weight
    kept = []
    left, right = x.clone().requires_grad_(), x.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        found = stored(left)
    expected = same(right)
    assert torch.equal(found, expected)
    assert not kept
    seed = torch.randn_like(expected)
    found.backward(seed)
    expected.backward(seed)
    torch.testing.assert_close(left.grad, right.grad)
    assert left.grad.dtype == dtype


@pytest.mark.parametrize(("precision", "near"), [("int8", 0.01), ("fp8", 0.03), ("nf4", 0.15)])
@pytest.mark.parametrize("loudest", [3e-3, 3e-4, 2e-5])
def test_quiet_outputs_of_a_half_precision_base_are_rounded_as_finely(precision, near, loudest):
    """Their scales lie below fp16's smallest normal number."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 8).half().requires_grad_(False)
    layer.weight.data = torch.linspace(-loudest, loudest, 512)[torch.randperm(512)].view(8, 64).half()
    before = layer.weight.float()
    after = StoredLinear(layer, precision, CPU).weight.float()
    assert (after - before).norm() / before.norm() < near + 6e-8 / loudest


def test_convolutions_with_other_edges_stay_as_they_are():
    part = nn.Module()
    part.blocks = nn.ModuleList(
        nn.Conv2d(2, 2, 3, **how)
        for how in ({"padding": 1}, {"padding": "same"}, {"padding": 1, "padding_mode": "circular"})
    )
    store_part(part, "int8", CPU)
    assert [isinstance(layer, StoredLayer) for layer in part.blocks] == [True, False, False]


def test_a_device_without_numbers_of_8_bits_is_told_from_the_start():
    part = nn.Module()
    part.blocks = nn.ModuleList([nn.Linear(2, 2)])
    with pytest.raises(BadInput, match=r"^weights in fp8: .*this device \(mps\).* choose int8"):
        compress_part(part, "fp8", torch.device("mps"))  # there is none here, which looks the same
    compress_part(part, "fp8", CPU)
    assert part.blocks[0].weight.shape == (2, 2)


def test_dora_with_dropout_keeps_no_weight_of_the_base(tiny_sd15):
    family = StableDiffusion15(BaseFiles(str(tiny_sd15)), dtype=torch.float32, device=CPU)
    load_part(family, "unet", Keeping("int8"))
    changes = {"adapter.method": "dora", "adapter.dropout": 0.1, "adapter.conv_rank": 2}
    attach(family, recipe(changes).adapter, 0)
    adapted = [layer for layer in family.denoiser.modules() if isinstance(layer, LoraLayer)]
    for kind, shape in ((nn.Linear, (3,)), (nn.Conv2d, (2, 5, 5))):
        layer = next(one for one in adapted if isinstance(one.get_base_layer(), kind))
        base = layer.get_base_layer()
        size = (2, base.in_channels, *shape[1:]) if kind is nn.Conv2d else (*shape, base.in_features)
        x, kept = torch.randn(size, requires_grad=True), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            y = layer(x)
        assert y.requires_grad
        weight = base.weight.abs().sum()
        assert kept
        assert not [t for t in kept if t.numel() == base.weight.numel() and t.abs().sum().isclose(weight)]


def test_under_autocast_gradients_come_in_the_dtype_of_the_input():
    torch.manual_seed(0)
    stored = StoredLinear(nn.Linear(32, 48).bfloat16().requires_grad_(False), "int8", CPU)
    x = torch.randn(3, 32, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = stored(x)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert x.grad.dtype == torch.float32
    torch.testing.assert_close(x.grad[0], stored.weight.sum(0).float(), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("family", ["sdxl", "flux1"])
def test_runs_lose_what_rounding_loses_and_no_more(family, request, tmp_path, pictures):
    base = request.getfixturevalue(f"tiny_{family}")
    found = {}
    for kept in ("whole", *ROUNDED):
        changes = TRAIN | {"train.base_weights": kept}
        rundir = write_run(tmp_path / kept, base, pictures, changes, family=family)
        assert train_here(rundir).status.warnings == []
        found[kept] = (losses(rundir), torch.cat([t.flatten() for t in tensors(rundir).values()]))
    for kept, near in (("int8", 0.01), ("fp8", 0.03), ("nf4", 0.1)):
        assert found[kept][0] == pytest.approx(found["whole"][0], rel=near)
        assert found[kept][0] != found["whole"][0]
        cosine = torch.cosine_similarity(found[kept][1], found["whole"][1], dim=0)
        assert cosine > 1 - near


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_over_a_rounded_base(method, tmp_path, pictures, tiny_sd15):
    changes = TRAIN | {
        "adapter.method": method,
        "train.base_weights": "nf4",
        "preview.every": 2,
        **METHODS[method],
    }
    rundir = write_run(tmp_path / "run", tiny_sd15, pictures, changes)
    train_here(rundir)
    assert all(torch.isfinite(t).all() for t in tensors(rundir).values())
    assert any(t.abs().max() > 0 for t in tensors(rundir).values())


@pytest.mark.parametrize("precision", ROUNDED)
def test_stopped_and_resumed_it_is_the_same_run(precision, tmp_path, pictures, tiny_sd15):
    changes = TRAIN | {"train.max_steps": 4, "train.base_weights": precision}
    whole = write_run(tmp_path / "whole", tiny_sd15, pictures, changes)
    train_here(whole)
    broken = write_run(tmp_path / "broken", tiny_sd15, pictures, changes)
    assert run(Reporter(broken), AfterOne(broken)) == 0
    assert 0 < len(broken.read_metrics()) < 4
    resume(broken)
    train_here(broken)
    assert equal(broken, whole)


class AfterOne(StopFlag):
    """Asks for a stop when a step is in the file."""

    def __init__(self, rundir):
        super().__init__()
        self.rundir = rundir

    def __bool__(self):
        return len(self.rundir.read_metrics()) >= 1


def bytes_of(part: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*part.parameters(), *part.buffers()))


@pytest.mark.parametrize(("precision", "share"), [("int8", 0.30), ("fp8", 0.30), ("nf4", 0.20)])
def test_a_base_takes_less(precision, share, tiny_sd15):
    sizes = {}
    for kept in ("whole", precision):
        family = StableDiffusion15(BaseFiles(str(tiny_sd15)), dtype=torch.float32, device=CPU)
        load_part(family, "unet", Keeping(kept))
        sizes[kept] = bytes_of(family.denoiser)
        assert any(isinstance(layer, StoredLayer) for layer in family.denoiser.modules()) == (kept != "whole")
    assert parameters(family, "unet") * 4 == sizes["whole"]
    assert sizes[precision] < share * sizes["whole"] * 1.2


def test_variants_of_the_weights_are_no_more_parameters(tiny_sd15, tmp_path):
    """Stable Diffusion 1.5 brings its UNet four times."""
    place = shutil.copytree(tiny_sd15, tmp_path / "base")
    family = StableDiffusion15(BaseFiles(str(place)), dtype=torch.float32, device=CPU)
    count, unet = parameters(family, "unet"), place / "unet"
    plain = unet / "diffusion_pytorch_model.safetensors"
    for variant in ("fp16", "non_ema"):
        shutil.copy(plain, unet / f"diffusion_pytorch_model.{variant}.safetensors")
    assert parameters(family, "unet") == count
    plain.unlink()
    assert parameters(family, "unet") == count
    assert sum(p.numel() for p in family.part("unet").parameters()) == count


def test_a_gpu_without_room_gets_the_finest_that_fits(tiny_sd15, monkeypatch):
    family = StableDiffusion15(BaseFiles(str(tiny_sd15)), dtype=torch.bfloat16, device=torch.device("cuda"))
    size, train = parameters(family, "unet") * 2, recipe().train

    class Card:
        total_memory = 0

    def chosen(**changes: str) -> Keeping:
        return choose(family, "unet", train.model_copy(update=changes))

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Card)
    for room, kept in ((1.3, "whole"), (0.7, "int8"), (0.4, "nf4")):
        Card.total_memory = int(room * size)
        assert chosen() == Keeping(kept)
        assert chosen(base_weights="whole", base_streaming="off") == Keeping()
        assert chosen(base_weights="whole") == Keeping(streamed=room < 1)  # it could not even be loaded
        assert chosen(base_weights="int8") == Keeping("int8", streamed=room < 0.5)
    Card.total_memory = int(0.1 * size)
    assert chosen() == Keeping("nf4", streamed=True)
    assert chosen(base_streaming="off") == Keeping("nf4")
    assert chosen(base_streaming="on") == Keeping("whole", streamed=True)
    assert chosen(base_streaming="on", base_weights="int8") == Keeping("int8", streamed=True)
    family.device = CPU
    assert chosen() == Keeping()


def test_processes_on_unequal_gpus_choose_alike(tiny_sd15, monkeypatch):
    """By the smallest one of the run; otherwise one would wait for a share that another never sends."""
    base, dtype = BaseFiles(str(tiny_sd15)), torch.bfloat16
    ranks = [StableDiffusion15(base, dtype=dtype, device=torch.device("cuda", rank)) for rank in range(3)]
    size = parameters(ranks[0], "unet") * 2
    rooms = [2.0, 1.0, 0.1]  # of the whole base

    def card(device: torch.device | int) -> SimpleNamespace:
        index = device if isinstance(device, int) else device.index
        return SimpleNamespace(total_memory=int(rooms[index] * size))

    monkeypatch.setattr(torch.cuda, "get_device_properties", card)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(rooms))
    several = recipe({"train.processes": 2}).train
    assert [choose(family, "unet", several) for family in ranks[:2]] == [Keeping(sharded=True)] * 2
    apart = several.model_copy(update={"base_sharding": "off"})
    assert [choose(family, "unet", apart) for family in ranks[:2]] == [Keeping("int8")] * 2
    alone = recipe().train
    assert [choose(family, "unet", alone).precision for family in ranks] == ["whole", "int8", "nf4"]


def test_where_the_whole_base_learns_it_is_never_rounded(tiny_sd15, monkeypatch):
    family = StableDiffusion15(BaseFiles(str(tiny_sd15)), dtype=torch.bfloat16, device=torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=1))

    def kept(rungs: Rungs, **changes: str) -> Keeping:
        wanted = recipe({key.replace("_", ".", 1): value for key, value in changes.items()})
        monkeypatch.setattr("trainers.ladder.read_rungs", lambda _: rungs)
        reporter = SimpleNamespace(warn=lambda _: None)
        setting = SimpleNamespace(family=family, recipe=wanted, rundir=None, reporter=reporter, writes=False)
        return first_rungs(setting).keeping(setting)

    assert kept(Rungs()) == Keeping("nf4", streamed=True)
    assert kept(Rungs(), adapter_method="full") == Keeping()
    assert kept(Rungs(), train_base_weights="whole") == Keeping(streamed=True)
    assert kept(Rungs(), train_base_weights="whole", train_base_streaming="off") == Keeping()
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=2**40))
    climbed = Rungs(base="nf4", streamed=True)
    assert kept(climbed) == Keeping("nf4", streamed=True)
    assert kept(climbed, train_base_weights="whole") == Keeping("whole", streamed=True)
    assert kept(climbed, train_base_weights="int8", train_base_streaming="off") == Keeping("int8")


def test_what_is_streamed_is_gone_when_it_is_freed(tiny_sd15, monkeypatch):
    family = StableDiffusion15(BaseFiles(str(tiny_sd15)), dtype=torch.float32, device=CPU)
    load_part(family, "unet", Keeping("nf4", streamed=True))
    layers = [module for module in family.denoiser.modules() if isinstance(module, StoredLayer)]
    assert all(layer.weight.isfinite().all() for layer in layers)
    gone = [weakref.ref(layer) for layer in layers]
    layers.clear()
    monkeypatch.setattr(family, "device", torch.device("cuda"))
    gc.disable()
    try:
        family.free("unet")
    finally:
        gc.enable()
    assert gone
    assert not any(ref() for ref in gone)


def test_what_is_streamed_is_given_up_though_attempts_of_the_dry_run_refer_to_it(tiny_sd15):
    family = StableDiffusion15(BaseFiles(str(tiny_sd15)), dtype=torch.float32, device=CPU)
    load_part(family, "unet", Keeping("nf4", streamed=True))
    denoiser = family.denoiser
    layers = [module for module in denoiser.modules() if isinstance(module, StoredLayer)]
    assert all(layer.weight.isfinite().all() for layer in layers)  # some are copied
    kept = [weakref.ref(tensor) for layer in layers for tensor in layer.resting]
    stream = weakref.ref(layers[0]._fetch.__self__)
    let_go(family)
    assert not family.holds("unet")
    assert denoiser.config
    assert kept
    assert not any(ref() is not None for ref in (*kept, stream))


def test_what_the_room_asks_for_is_said_once_and_kept(tmp_path, pictures, tiny_sd15, monkeypatch):
    """On another GPU the run goes on as it began; without one it would have begun whole."""
    room = [Keeping("nf4", streamed=True)]
    monkeypatch.setattr("trainers.ladder.choose", lambda *_: room[0])
    rundir = write_run(tmp_path / "run", tiny_sd15, pictures, TRAIN | {"train.max_steps": 4})
    reporter = Reporter(rundir)
    assert run(reporter, AfterOne(rundir)) == 0
    (said,) = reporter.status.warnings
    assert said == (
        "the GPU has no room for the whole base: its weights are rounded to 4 bits and come from the main "
        "memory (steps take longer)"
    )
    assert json.loads(rundir.file("memory.json").read_text()) == asdict(Rungs(base="nf4", streamed=True))
    room[0] = Keeping()
    resume(rundir)
    assert train_here(rundir).status.warnings == []
    asked = {"train.base_weights": "nf4", "train.base_streaming": "on", "train.max_steps": 4}
    other = write_run(tmp_path / "asked", tiny_sd15, pictures, TRAIN | asked)
    monkeypatch.undo()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    train_here(other)
    assert equal(rundir, other)


def test_captions_read_by_a_rounded_t5_are_cached_apart(tmp_path, pictures, tiny_flux1, monkeypatch):
    loaded = []
    real = Flux1._load
    monkeypatch.setattr(Flux1, "_load", lambda family, name: loaded.append(name) or real(family, name))
    entries = []
    for name, kept in (("a", "whole"), ("b", "nf4"), ("c", "nf4")):
        changes = TRAIN | {"train.base_weights": kept, "train.max_steps": 1}
        train_here(write_run(tmp_path / name, tiny_flux1, pictures, changes, family="flux1"))
        entries.append(len(list((tmp_path / "cache" / "text").rglob("*.safetensors"))))
    assert entries[1] == 2 * entries[0]
    assert entries[2] == entries[1]
    assert loaded.count("text_encoder_2") == 2  # not for the third, whose captions are all there


def test_the_last_rungs_load_the_base_in_another_way(tmp_path, monkeypatch, tiny_sd15, pictures):
    """No room for a single picture over a whole base, and room over one of four bits that is streamed."""
    changes = TRAIN | {"train.dry_run": "on", "train.batch_size": 2, "optimizer.name": "adamw8bit"}
    ShortMemory(monkeypatch, 0.5)
    short = StableDiffusion15.predict

    def predict(family, x_t, t, cond, geometry):
        layers = [layer for layer in family.denoiser.modules() if isinstance(layer, StoredLayer)]
        fits = {layer.precision for layer in layers} == {"nf4"} and all(hasattr(n, "resting") for n in layers)
        if torch.is_grad_enabled() and not fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return short(family, x_t, t, cond, geometry)

    monkeypatch.setattr(StableDiffusion15, "predict", predict)
    rundir = write_run(tmp_path / "short", tiny_sd15, pictures, changes)
    said = [warning.partition("memory: ")[2] for warning in train_here(rundir).status.warnings]
    assert said[-3:] == [
        "the base's weights are rounded to 8 bits",
        "the base's weights are rounded to 4 bits",
        "the base's weights come from the main memory (steps take longer)",
    ]
    assert json.loads(rundir.file("memory.json").read_text()) == asdict(Rungs(1.0, "", 2, "nf4", True))
    asked = {"train.base_weights": "nf4", "train.base_streaming": "on", "train.gradient_checkpointing": True}
    other = write_run(tmp_path / "asked", tiny_sd15, pictures, changes | asked)
    train_here(other)
    assert equal(rundir, other)
