"""LoRA in 16 bits from fp32 masters: the gradients of fp32, fewer operations, the same run when resumed."""

import weakref
from collections import Counter

import pytest
import torch
from accelerate.state import AcceleratorState
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.runs import recipe, resume, write_run
from tests.support.trained_here import equal, losses, set_here, tensors, train_here
from trainers.families import FAMILIES
from trainers.families.base import BaseFiles
from trainers.flat import refresh
from trainers.groups import make_flats
from trainers.method_table import is_plain_lora
from trainers.methods import attach
from trainers.metrics import Reporter
from trainers.packed import Turned, pack
from trainers.run import run
from trainers.signals import StopFlag
from trainers.stored import ROUNDED, compress_part

CPU = torch.device("cpu")
ADAPTER = {
    "adapter.rank": 4,
    "adapter.alpha": 6.0,
    "adapter.conv_rank": 3,
    "adapter.train_text_encoder": True,
    "adapter.text_rank": 2,
}
TRAIN = {"train.max_steps": 4, "checkpoints.every": 1, "train.precision": "bf16", **ADAPTER}


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    """Trained in this process, which keeps one precision until it is told to forget it."""
    set_here(monkeypatch)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class Model:
    """A toy base with an adapter that has learned something; packed or as PEFT has it."""

    def __init__(self, folder, dtype, *, packed=False, changes=ADAPTER, kept="whole", device=CPU):
        chosen = recipe(changes)
        self.family = FAMILIES["sd15"].load_class()(BaseFiles(str(folder)), dtype=dtype, device=device)
        compress_part(self.family.denoiser, kept, device)
        self.trainables = attach(self.family, chosen.adapter, seed=0)
        self.flats = make_flats(self.trainables, chosen.optimizer, "unet")
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for flat in self.flats:
                moved = 0.05 * torch.randn(flat.parameter.shape, generator=generator)
                flat.parameter.add_(moved.to(device))
        self.packed = pack(self.trainables, self.flats, dtype) if packed else 0

    def step(self, times=1):
        """Prediction, and gradients of what learns after so many backward passes."""
        device, dtype = self.family.device, self.family.dtype
        x_t = torch.randn(2, 4, 8, 6, generator=torch.Generator().manual_seed(4)).to(device)
        tokens = {k: v.to(device) for k, v in self.family.tokenize(["a red disc", "x"]).items()}
        for _ in range(times):
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                cond, t = self.family.conditioning(tokens), torch.tensor([5, 700], device=device)
                prediction = self.family.predict(x_t, t, cond, []).float()
            prediction.square().mean().backward()
            for flat in self.flats:
                flat.gather()
        return prediction.detach(), torch.cat([flat.parameter.grad for flat in self.flats])


class Operations(TorchDispatchMode):
    """Counts what is dispatched, views apart."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view:
            self.seen[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def operations(model: Model) -> Counter:
    model.step()
    with Operations() as counted:
        model.step()
    return counted.seen


def cosine(left, right):
    return float(torch.cosine_similarity(left, right, dim=0))


@pytest.mark.parametrize("method", ["lora", "rslora"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_are_those_of_fp32_and_lie_in_fp32(dtype, method, tiny_sd15):
    changes = ADAPTER | {"adapter.method": method}
    exact, gradient = Model(tiny_sd15, torch.float32, changes=changes).step()
    model = Model(tiny_sd15, dtype, packed=True, changes=changes)
    adapted = [layer for part in model.trainables.components.values() for layer in part.modules()]
    assert model.packed == sum(map(is_plain_lora, adapted)) > 50
    prediction, found = model.step()
    assert found.dtype == torch.float32
    assert cosine(found, gradient) > 0.999
    torch.testing.assert_close(prediction, exact, atol=0.05, rtol=0.05)
    _, peft = Model(tiny_sd15, dtype, changes=changes).step()
    assert cosine(found, gradient) > cosine(peft, gradient) - 1e-4
    _, twice = model.step(times=2)
    torch.testing.assert_close(twice, 3 * found)  # of three passes, added up in fp32


def test_nothing_changes_in_fp32(tiny_sd15):
    model = Model(tiny_sd15, torch.float32, packed=True)
    assert model.packed == 0
    for left, right in zip(model.step(), Model(tiny_sd15, torch.float32).step(), strict=True):
        assert torch.equal(left, right)


def test_fewer_operations(tiny_sd15):
    before = operations(Model(tiny_sd15, torch.bfloat16))
    after = operations(Model(tiny_sd15, torch.bfloat16, packed=True))
    assert after.total() < 0.75 * before.total()
    assert after["_to_copy"] < 0.25 * before["_to_copy"]


def test_what_several_layers_read_is_turned_once(tiny_sd15, monkeypatch):
    """Norms give fp32 under a GPU's autocast; here they are made to."""
    plain = torch.nn.functional.layer_norm
    monkeypatch.setattr(torch.nn.functional, "layer_norm", lambda x, *a, **k: plain(x, *a, **k).float())
    turned = Turned(torch.bfloat16)
    model = Model(tiny_sd15, torch.bfloat16, packed=True)
    shared, shares = operations(model), model.step()[1].clone()
    monkeypatch.setattr(Turned, "__call__", lambda self, x: x.to(self.dtype))
    other = Model(tiny_sd15, torch.bfloat16, packed=True)
    apart = operations(other)
    assert (
        shared["_to_copy"] <= apart["_to_copy"] - 2 * 2 * 4
    )  # keys and values of each block, there and back
    assert cosine(shares, other.step()[1]) > 0.9999
    monkeypatch.undo()
    x = torch.randn(3, 4, requires_grad=True) * 2
    first = turned(x)
    assert turned(x) is first
    del first
    with torch.no_grad():
        assert not turned(x).requires_grad
        x.add_(1)
    assert torch.equal(turned(x), x.bfloat16())
    seen = weakref.ref(turned(x))
    del x
    assert seen() is None


def test_values_are_written_through(tiny_sd15):
    """What a step, a checkpoint or a mean puts into the masters is what layers compute with."""
    model = Model(tiny_sd15, torch.bfloat16, packed=True)
    first, _ = model.step()
    with torch.no_grad():
        for flat in model.flats:
            flat.parameter.mul_(1.5)
    assert torch.equal(model.step()[0], first)
    refresh(model.flats)
    assert not torch.equal(model.step()[0], first)
    other = Model(tiny_sd15, torch.bfloat16, packed=True)
    for mine, theirs in zip(other.flats, model.flats, strict=True):
        mine.parameter.data.copy_(theirs.parameter.data)
    refresh(other.flats)
    assert torch.equal(other.step()[0], model.step()[0])


def test_switched_off_it_is_the_base(tiny_sd15):
    model = Model(tiny_sd15, torch.bfloat16, packed=True)
    bare = FAMILIES["sd15"].load_class()(BaseFiles(str(tiny_sd15)), dtype=torch.bfloat16, device=CPU)
    x_t, t, cond = torch.randn(1, 4, 8, 8), torch.tensor([9]), {"hidden": torch.randn(1, 77, 32)}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        with model.trainables.disabled():
            assert torch.equal(model.family.predict(x_t, t, cond, []), bare.predict(x_t, t, cond, []))
        assert not torch.equal(model.family.predict(x_t, t, cond, []), bare.predict(x_t, t, cond, []))


def test_what_is_frozen_learns_no_more(tiny_sd15):
    model = Model(tiny_sd15, torch.bfloat16, packed=True)
    text = next(flat for flat in model.flats if flat.role == "text")
    text.freeze()
    model.flats.remove(text)
    model.step()
    text.gather()
    assert text.parameter.grad is None
    assert all(parameter.grad is None for parameter in text.named.values())


@pytest.mark.parametrize("method", ["dora", "loha", "lokr", "oft", "pissa"])
def test_other_methods_stay_with_peft(method, tiny_sd15):
    only = {"adapter.method": method} | ({"adapter.alpha": None} if method == "oft" else {})
    assert Model(tiny_sd15, torch.bfloat16, packed=True, changes=only).packed == 0


@pytest.mark.parametrize("kept", ROUNDED)
def test_over_a_rounded_base(kept, tiny_sd15):
    model = Model(tiny_sd15, torch.bfloat16, packed=True, kept=kept)
    plain = Model(tiny_sd15, torch.bfloat16, kept=kept)
    assert model.packed > 50
    assert cosine(model.step()[1], plain.step()[1]) > 0.999


class AfterOne(StopFlag):
    """Asks for a stop when a step is in the file."""

    def __init__(self, rundir):
        super().__init__()
        self.rundir = rundir

    def __bool__(self):
        return len(self.rundir.read_metrics()) >= 1


@pytest.mark.parametrize(
    "more",
    [
        {"train.accumulate": 2, "adapter.dropout": 0.1, "train.gradient_checkpointing": True},
        {"optimizer.name": "adafactor", "adapter.text_encoder_until": 0.5, "preview.every": 2},
        {"optimizer.name": "schedulefree", "optimizer.block_lrs": {".*attn1.*": 0.5}, "train.dry_run": "on"},
    ],
    ids=["accumulated", "adafactor", "schedulefree"],
)
def test_stopped_and_resumed_in_bf16_it_is_the_same_run(more, tmp_path, pictures, tiny_sd15):
    whole = write_run(tmp_path / "whole", tiny_sd15, pictures, TRAIN | more)
    train_here(whole)
    assert {tensor.dtype for tensor in tensors(whole).values()} == {torch.float32}
    broken = write_run(tmp_path / "broken", tiny_sd15, pictures, TRAIN | more)
    assert run(Reporter(broken), AfterOne(broken)) == 0
    assert 0 < len(broken.read_metrics()) < 4
    resume(broken)
    train_here(broken)
    assert losses(broken) == losses(whole)
    assert equal(broken, whole)


def test_a_run_in_bf16_learns_what_one_in_fp32_learns(tmp_path, pictures, tiny_sd15):
    runs = [
        write_run(tmp_path / name, tiny_sd15, pictures, TRAIN | {"train.precision": name})
        for name in ("fp32", "bf16")
    ]
    for rundir in runs:
        assert train_here(rundir).status.warnings == []
        AcceleratorState._reset_state(reset_partial_state=True)
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), rel=0.02)
    left, right = (torch.cat([t.flatten() for t in tensors(rundir).values()]) for rundir in runs)
    assert cosine(left, right) > 0.99
