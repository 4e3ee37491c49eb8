"""Quicker ways to compute: the same pictures but for rounding, and adapters that compile nothing anew."""

from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from studio.sampling import quicker
from studio.sampling.engine import Engine
from studio.sampling.quicker import quicken
from studio.sampling.stack import AdapterStack, AdapterUseInStack
from tests.support.adapters import make_form, write_run_file
from tests.support.bases import save_base
from tests.support.methods import draw, load, save, trained
from tests.support.modes import drawn, floats, task
from trainers.recipe import AdapterSection

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_base("sd15", tmp_path_factory.mktemp("quicker") / "base")


@pytest.fixture(scope="module")
def uses(folder: Path, tmp_path_factory):
    """Two of plain LoRA of other ranks on other layers, one of another method."""
    place, model = tmp_path_factory.mktemp("uses"), load("sd15", folder)
    found = {
        f"unet.{name}": tuple(layer.weight.shape)
        for name, layer in model.denoiser.named_modules()
        if name.endswith(("attn1.to_q", "attn2.to_v", "net.2", "conv1"))
    }
    chosen = {
        "small": (2, {name: shape for name, shape in found.items() if "attn1" in name}),
        "large": (9, found),
    }
    files = {
        name: write_run_file(
            make_form(shapes, family="sd15", seed=rank, rank=rank), place / f"{name}.safetensors"
        )
        for name, (rank, shapes) in chosen.items()
    }
    oft = AdapterSection(method="oft", oft_block=8)
    files["oft"] = save(trained("sd15", folder, oft)[1], place / "oft.safetensors")
    return {name: AdapterUseInStack(name, path, name, 0.8, 0.8) for name, path in files.items()}


def test_adapters_are_switched_without_compiling_anew(folder: Path, uses: dict[str, AdapterUseInStack]):
    plain, compiled = load("sd15", folder), load("sd15", folder)
    theirs, ours = AdapterStack(plain), AdapterStack(compiled)
    counter = CompileCounter()
    assert quicken(compiled, ours, "compiled", backend=counter) == ("compiled", "")
    expected = draw(plain)
    torch.testing.assert_close(draw(compiled), expected, atol=1e-5, rtol=0)
    first = counter.frame_count
    assert first > 0
    small, large, oft = uses["small"], uses["large"], uses["oft"]
    for wanted in ([small], [small, large], [oft], []):
        theirs.use(wanted)
        ours.use(wanted)
        torch.testing.assert_close(draw(compiled), draw(plain), atol=1e-5, rtol=0)
    assert counter.frame_count == first, "an adapter compiled something"
    ours.use([])
    assert quicken(compiled, ours, "plain") == ("plain", "")
    assert torch.equal(draw(compiled), expected)


def test_channels_last_draws_alike_and_says_so_of_transformers(folder: Path, tmp_path: Path):
    engine = Engine(device="cpu")
    plain = floats(task("sd15", folder, steps=2), engine)
    last = floats(task("sd15", folder, steps=2, speed="channels_last"), engine)
    torch.testing.assert_close(last, plain, atol=1e-4, rtol=0)
    (loaded,) = engine._shelf.bases.values()
    assert loaded.family.denoiser.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(floats(task("sd15", folder, steps=2), engine), plain), "and back"

    other = save_base("sd35", tmp_path / "sd35")
    _, said = drawn(task("sd35", other, steps=2, speed="channels_last"))
    assert said.warnings == ["channels_last has no effect: this base has no convolutions in its blocks."]


def test_where_nothing_compiles_it_is_drawn_all_the_same(folder: Path, monkeypatch):
    def refuse(*_args, **_options):
        raise RuntimeError(
            "No working C++ compiler found in torch._inductor.config.cpp.cxx: (None, 'g++')\nmore"
        )

    quicker.why_not.cache_clear()
    monkeypatch.setattr(torch, "compile", refuse)
    how = []
    wanted = task("sd15", folder, steps=1, speed="compiled")
    said = Engine(device="cpu").draw(wanted, keep=lambda _index, _picture, made: how.append(made.speed))
    monkeypatch.undo()
    quicker.why_not.cache_clear()
    assert how == ["plain"], "which is what the picture says"
    (line,) = said.warnings
    assert line.startswith(
        "Drawn without compiling: torch cannot compile on this machine (No working C++ comp"
    )
    assert "more" not in line


def test_weights_that_come_and_go_are_not_compiled(folder: Path):
    _, said = drawn(task("sd15", folder, steps=1, speed="compiled", memory="group"))
    assert said.warnings == ["compiled has no effect while the base's weights come and go (memory group)."]
