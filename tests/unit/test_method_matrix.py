"""Every adapter method, one matrix: starts as the base, learns where it should, means the same everywhere."""

import json
import shutil
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import get_peft_config, inject_adapter_in_model, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file

from registry.errors import BadInput
from registry.formats.export import export_adapter
from registry.formats.factors import change_of, merged_weight
from registry.formats.load import load_adapter
from registry.hashing import hash_adapter
from studio.sampling.stack import AdapterStack, AdapterUseInStack
from tests.support.methods import SECTIONS, draw, load, save, train_some
from tests.support.runs import resume, train, write_run
from trainers.methods import PEFT_KEY, attach
from trainers.recipe import AdapterSection
from trainers.rundir import RunDir

EXPORTS = {"kohya", "diffusers", "peft"}
REFUSED = {"oft": {"kohya", "diffusers"}, "loha": {"diffusers"}, "lokr": {"diffusers"}}


@pytest.fixture(scope="module")
def base(tiny_sd15):
    return "sd15", tiny_sd15


@pytest.fixture(scope="module")
def plain(base):
    """What the base alone draws."""
    return draw(load(*base))


@pytest.fixture(scope="module")
def plain_bf16(base):
    return draw(load(*base, torch.bfloat16), autocast=True)


@pytest.fixture(scope="module")
def stages(request):
    """Family -> a base that adapters are put on and taken off again, loaded once; clear it after use."""

    @cache
    def stage(family):
        model = load(family, request.getfixturevalue(f"tiny_{family}"))
        return model, AdapterStack(model), draw(model)

    return stage


@dataclass(frozen=True)
class Untrained:
    """What was there before the first step."""

    movement: float
    drawn: torch.Tensor
    learning: dict[torch.nn.Parameter, torch.dtype]  # of the whole model


@pytest.fixture(scope="module")
def made(base, tmp_path_factory):
    """Name of a section -> (untrained, trained model, its trainables, the file they were saved to), once."""

    @cache
    def make(name):
        model = load(*base)
        trainables = attach(model, SECTIONS[name], seed=3)
        parts = (model.denoiser, *model.text_encoders.values())
        learning = {p: p.dtype for part in parts for p in part.parameters() if p.requires_grad}
        untrained = Untrained(trainables.movement(), draw(model), learning)
        train_some(model, trainables)
        path = save(trainables, tmp_path_factory.mktemp("file") / "a.safetensors")
        return untrained, model, trainables, path

    return make


@pytest.fixture(scope="module", params=SECTIONS)
def adapter(request, made):
    """(section, trained model, its trainables, the file they were saved to)"""
    return SECTIONS[request.param], *made(request.param)[1:]


@pytest.fixture(scope="module")
def drawn(adapter):
    """What the trained model draws."""
    return draw(adapter[1])


def layer_of(model, name):
    component, _, place = name.partition(".")
    return model.part(component).get_submodule(place.removeprefix("text_model."))


def use(path, weight=1.0):
    return AdapterUseInStack("a", path, "5" * 64, weight, weight)


def staged(stages, family, path):
    """What a base draws with the file on it; nothing in it may be left over, and the base is clear after."""
    model, stack, _ = stages(family)
    (report,) = stack.use([use(path)])
    assert not report.unmatched
    found = draw(model)
    stack.clear()
    return found


@pytest.mark.parametrize("name", SECTIONS)
def test_an_untrained_adapter_is_the_base(name, made, plain):
    untrained, _, trainables, _ = made(name)
    assert untrained.movement == 0
    atol = 2e-6 if SECTIONS[name].method == "pissa" else 0.0  # W - D + D
    torch.testing.assert_close(untrained.drawn, plain, atol=atol, rtol=0)
    assert set(untrained.learning.values()) == {torch.float32}
    assert set(untrained.learning) == set(trainables.parameters)


@pytest.mark.parametrize("name", SECTIONS)
def test_over_a_bf16_base_the_factors_stay_fp32_and_start_at_the_base(name, base, plain_bf16):
    model = load(*base, torch.bfloat16)
    trainables = attach(model, SECTIONS[name], seed=1)
    assert {p.dtype for p in trainables.parameters} == {torch.float32}
    off = float((draw(model, autocast=True) - plain_bf16).abs().max())
    assert off <= (0.05 if SECTIONS[name].method == "pissa" else 0)
    with trainables.disabled():
        assert torch.equal(draw(model, autocast=True), plain_bf16)


def test_gradients_only_where_trained(adapter, plain, drawn):
    _, model, trainables, _ = adapter
    assert trainables.movement() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trainables.parameters)
    learning = {id(p) for p in trainables.parameters}
    for component in trainables.components.values():
        assert all(id(p) in learning for p in component.parameters() if p.grad is not None)
    with trainables.disabled():
        assert torch.equal(draw(model), plain)
        assert torch.equal(draw(model), plain)
    assert torch.equal(draw(model), drawn)
    frozen = [p.requires_grad for p in trainables.initial.values()]
    assert not any(frozen)
    assert not torch.allclose(drawn, plain, atol=1e-3)


def test_the_stack_draws_what_the_trainer_draws_and_weight_zero_is_the_base(
    adapter, base, plain, drawn, stages
):
    _, _, _, path = adapter
    fresh, stack, _ = stages(base[0])
    (report,) = stack.use([use(path)])
    assert not report.unmatched
    torch.testing.assert_close(draw(fresh), drawn, atol=2e-6, rtol=1e-5)
    stack.use([use(path, 0.0)])
    assert torch.equal(draw(fresh), plain)
    stack.use([use(path, 0.5)])
    assert not torch.allclose(draw(fresh), plain, atol=1e-4)
    stack.clear()
    assert torch.equal(draw(fresh), plain)


def test_merged_into_the_weights_it_draws_the_same(adapter, base, drawn):
    _, _, _, path = adapter
    form, _, _ = load_adapter(path, base[0])
    merged = load(*base)
    with torch.no_grad():
        for name, factors in form.everything.items():
            layer = layer_of(merged, name)
            layer.weight.copy_(torch.from_numpy(merged_weight(factors, layer.weight.numpy())))
    torch.testing.assert_close(draw(merged), drawn, atol=1e-5, rtol=1e-4)


def test_peft_builds_the_same_from_the_file_alone(adapter, base, drawn):
    _, _, _, path = adapter
    with safe_open(path, "pt") as file:
        configs = json.loads(file.metadata()[PEFT_KEY])
    fresh = load(*base)
    for component, facts in configs.items():
        module = fresh.part(component)
        inject_adapter_in_model(get_peft_config({"task_type": None, **facts}), module)
        mine = {
            key.removeprefix(f"{component}.").removeprefix("text_model."): value
            for key, value in load_file(path).items()
            if key.startswith(f"{component}.")
        }
        outcome = set_peft_model_state_dict(module, mine)
        assert not outcome.unexpected_keys
    torch.testing.assert_close(draw(fresh), drawn, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("layout", sorted(EXPORTS))
def test_exported_and_read_back_it_draws_the_same(layout, adapter, drawn, base, stages, tmp_path):
    section, _, _, path = adapter
    out = tmp_path / "out"
    if layout in REFUSED.get(section.method, set()):
        with pytest.raises(BadInput, match=f"the {layout} layout: cannot hold {section.method}"):
            export_adapter(path, out, layout, family=base[0])
        return
    report = export_adapter(path, out, layout, family=base[0])
    assert report.matched == report.modules > 0
    assert all(tool.note or tool.verdict == "loads" for tool in report.tools)
    half = export_adapter(path, tmp_path / "half", layout, family=base[0], dtype="fp16")
    assert half.worst_error < 5e-3
    if layout != "peft":
        torch.testing.assert_close(
            staged(stages, base[0], tmp_path / "out.safetensors"), drawn, atol=5e-6, rtol=1e-4
        )


@pytest.mark.parametrize("name", ["rslora", "dora", "pissa", "block ranks"])
def test_diffusers_loads_the_run_s_file_and_its_own_layout(name, base, made, tmp_path):
    _, model, _, path = made(name)
    expected = draw(model)
    report = export_adapter(path, tmp_path / "out.safetensors", "diffusers", family=base[0])
    assert report.tools[0].verdict == "loads"
    for file in (path, tmp_path / "out.safetensors"):
        pipe = StableDiffusionPipeline.from_pretrained(base[1], local_files_only=True)
        pipe.load_lora_weights(file.parent, weight_name=file.name)
        fresh = load(*base)
        fresh._loaded |= {"unet": pipe.unet.eval(), "text_encoder": pipe.text_encoder.eval()}
        torch.testing.assert_close(draw(fresh), expected, atol=5e-6, rtol=1e-4)


def test_what_inspect_says(adapter):
    section, _, trainables, path = adapter
    _, facts, _ = load_adapter(path, "sd15")
    doubled = 2 if section.method == "pissa" else 1
    held = {"rslora": "lora", "pissa": "lora"}.get(section.method, section.method)
    assert facts.method == held
    assert facts.modules == len(trainables.layers)
    assert facts.layout == "diffusers"
    if held != "oft":
        assert facts.rank == (section.rank if section.rank < 64 else 64) * doubled
        strength = section.scale_alpha * doubled * (section.rank**0.5 if section.method == "rslora" else 1)
        assert facts.alpha == pytest.approx(strength)


def test_adapters_of_all_methods_act_together_on_one_base(base, made):
    parts = {name: made(name)[3] for name in ("lora", "dora", "loha", "lokr", "oft")}
    weights = (1, 0.7, 0.5, 1, 0.4)
    uses = [
        AdapterUseInStack(name, path, f"{name:0<40}", weight, weight)
        for (name, path), weight in zip(parts.items(), weights, strict=True)
    ]
    fresh = load(*base)
    plain = draw(fresh)
    stack = AdapterStack(fresh)
    stack.use(uses)
    together = draw(fresh)
    merged = load(*base)
    changes: dict[str, np.ndarray] = {}
    for item in uses:
        for name, factors in load_adapter(item.path, base[0])[0].everything.items():
            weight = layer_of(merged, name).weight.numpy()
            changes[name] = changes.get(name, 0) + item.weight * change_of(factors, weight)
    with torch.no_grad():
        for name, change in changes.items():
            layer_of(merged, name).weight += torch.from_numpy(change)
    torch.testing.assert_close(together, draw(merged), atol=1e-5, rtol=1e-3)
    stack.use([])
    assert torch.equal(draw(fresh), plain)


@pytest.mark.parametrize("name", ["rslora", "dora", "loha", "lokr", "oft", "pissa", "block ranks"])
def test_resumed_in_the_middle_it_is_bit_identical(name, tmp_path, tiny_sd15, pictures):
    section = SECTIONS[name]
    changes = {f"adapter.{key}": value for key, value in section.model_dump().items()}
    if section.method in ("lora", "rslora", "dora", "loha", "lokr"):
        changes["adapter.dropout"] = 0.2
    changes |= {"train.max_steps": 2, "checkpoints.every": 1, "checkpoints.keep": 2, "train.ema_decay": 0.9}
    if name == "block ranks":
        changes |= {"optimizer.block_lrs": {".*attn2.*": 0.5}, "optimizer.lora_plus_ratio": 4.0}
    whole = write_run(tmp_path / "whole", tiny_sd15, pictures, changes)
    assert train(whole) == 0, whole.file("log.txt").read_text()
    half = RunDir(shutil.copytree(whole.path, tmp_path / "half"))
    half.adapter.unlink()
    for folder in half.checkpoints()[1:]:
        shutil.rmtree(folder)
    resume(half)
    assert train(half) == 0, half.file("log.txt").read_text()
    assert hash_adapter(half.adapter).tensor_sha256 == hash_adapter(whole.adapter).tensor_sha256
    assert [line["loss"] for line in half.read_metrics()] == [line["loss"] for line in whole.read_metrics()]


@pytest.mark.parametrize(
    ("values", "wrong"),
    [
        ({"method": "oft", "conv_rank": 4}, "0 with oft: PEFT's oft adds up overlapping patches"),
        ({"method": "oft", "alpha": 2.0}, "oft has no strength"),
        ({"method": "pissa", "dropout": 0.1}, "pissa would drop parts of the base"),
        ({"method": "lora", "lokr_factor": 4}, "only lokr has Kronecker factors"),
        ({"method": "dora", "tucker": True}, "only loha and lokr have that form"),
        ({"method": "oft", "block_ranks": {".*to_q": 3}}, "oft takes only 0"),
    ],
)
def test_fields_that_mean_nothing_with_a_method_are_refused(values, wrong):
    with pytest.raises(ValueError, match=wrong):
        AdapterSection(**values)


def test_pissa_needs_as_many_directions_as_its_rank(base):
    with pytest.raises(BadInput, match=r"adapter\.rank: pissa of rank 64 needs as many dir.* has 32"):
        attach(load(*base), AdapterSection(method="pissa", rank=64), seed=0)


@pytest.mark.parametrize("method", ["lora", "rslora", "dora", "loha", "lokr", "oft", "pissa"])
@pytest.mark.parametrize("family", ["sdxl", "sd35", "flux1"])
def test_every_family_takes_every_method(family, method, request, stages, tmp_path):
    """From the base to a file and back, over all its layers and text encoders."""
    sizes = {"oft_block": 4} if method == "oft" else {"rank": 2}
    model = load(family, request.getfixturevalue(f"tiny_{family}"))
    *_, plain = stages(family)
    trainables = attach(model, AdapterSection(method=method, train_text_encoder=True, **sizes), seed=1)
    assert trainables.movement() == 0
    torch.testing.assert_close(draw(model), plain, atol=1e-5 if method == "pissa" else 0.0, rtol=0)
    train_some(model, trainables, steps=2)
    assert trainables.movement() > 0
    learning = {id(p) for p in trainables.parameters}
    unread = {key for key, p in trainables.named.items() if p.grad is None}
    assert all(p.grad.isfinite().all() for p in trainables.parameters if p.grad is not None)
    # SDXL reads its first encoder before the last layer; nothing else is left out.
    assert all(family == "sdxl" and key.startswith("text_encoder.") and ".layers.1." in key for key in unread)
    parts = (model.denoiser, *model.text_encoders.values())
    assert all(id(p) in learning for part in parts for p in part.parameters() if p.grad is not None)
    drawn = draw(model)
    assert not torch.allclose(drawn, plain, atol=1e-4)
    with trainables.disabled():
        assert torch.equal(draw(model), plain)
    assert torch.equal(draw(model), drawn)
    assert len({key.partition(".")[0] for key in trainables.text}) == len(model.clip_encoders)
    path = save(trainables, tmp_path / "run.safetensors")
    written = export_everywhere(path, family, tmp_path)
    assert set(written) == EXPORTS - REFUSED.get(method, set()) - fused(family, method)
    for file in (path, *written.values()):
        if file.is_file():  # the stack takes no PEFT folders
            torch.testing.assert_close(staged(stages, family, file), drawn, atol=1e-5, rtol=1e-4)


def export_everywhere(path, family, folder):
    """Layout -> what was written; layouts that refuse with a reason are left out."""
    written = {}
    for layout in sorted(EXPORTS):
        out = folder / (layout if layout == "peft" else f"{layout}.safetensors")
        try:
            report = export_adapter(path, out, layout, family=family)
        except BadInput:
            continue  # the caller knows which; nothing is left behind
        assert report.matched == report.modules > 0
        written[layout] = out
    assert {p.name for p in folder.iterdir()} == {"run.safetensors", *(p.name for p in written.values())}
    return written


def fused(family, method):
    """kohya's names of transformers fuse layers, which A, B and magnitudes of rows can follow."""
    parts_of_rows = ("lora", "rslora", "pissa", "dora")
    return {"kohya"} if family in ("sd35", "flux1") and method not in parts_of_rows else set()
