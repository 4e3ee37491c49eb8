"""PEFT's adapters taken in: the strength beside them is in the catalog, and right wherever they are used."""

import json
import shutil

import numpy as np
import pytest
import torch

from registry.formats.internal import AdapterForm, LoraFactors
from registry.formats.load import load_adapter
from registry.formats.peft_config import ASSUMED, CONFIG, WEIGHTS, PeftConfig
from registry.formats.tensors import save
from registry.records import Adapter, Base
from studio.adapters import export
from studio.operations import Use, merge, xray
from studio.sampling.stack import AdapterStack, AdapterUseInStack
from studio.sampling.submit import submit
from studio.sampling.task import SampleTask
from studio.workspace import Workspace
from tests.support.adapters import make_form
from tests.support.imports import take_in
from tests.support.methods import load
from tests.support.sampling import MODULES, pocket_shapes, request

ALPHA = 10.0  # of rank 4


@pytest.fixture
def form(ws: Workspace) -> AdapterForm:
    made = make_form(pocket_shapes(ws, MODULES), conv_rank=4)
    return AdapterForm("sd15", {m: LoraFactors(f.down, f.up, ALPHA) for m, f in made.modules.items()})


def peft_folder(form, folder, alpha=ALPHA):
    folder.mkdir(parents=True)
    tensors = {}
    for module, factors in form.modules.items():
        path = "base_model.model." + module.removeprefix("unet.")
        tensors |= {f"{path}.lora_A.weight": factors.down, f"{path}.lora_B.weight": factors.up}
    save(folder / WEIGHTS, tensors, {})
    if alpha:
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": alpha, "use_rslora": False, "use_dora": False}
        (folder / CONFIG).write_text(json.dumps(config))
    return folder


def same(got, form):
    for module in MODULES:
        np.testing.assert_allclose(got.delta(module), form.delta(module), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("given", ["folder", "file"])
def test_the_strength_is_right_everywhere_afterwards(copy, given, ws, form, folder, tmp_path):
    place = peft_folder(form, folder / "ink")
    report = take_in(ws, place if given == "folder" else place / WEIGHTS, copy=copy)
    assert not report.notes
    row = ws.catalog.get(Adapter, "ink")
    assert (row.rank, row.alpha, row.metadata["layout"]) == (4, ALPHA, "peft")
    ws.catalog.update(Adapter, row.id, family="sd15")  # the pocket base's width is no known family's
    (place / CONFIG).unlink()  # from here on only the catalog knows
    if copy:
        shutil.rmtree(place)
    export(ws, "ink", "kohya", tmp_path / "out")
    same(load_adapter(tmp_path / "out.safetensors", "sd15")[0], form)
    seen = xray(ws, ["ink"])["adapters"][0]
    assert seen["norm"] == pytest.approx(np.sqrt(sum((form.delta(m) ** 2).sum() for m in MODULES)), rel=1e-4)
    made = merge(ws, [Use("ink")], name="copy").adapter
    same(load_adapter(ws.resolve(made.path), "sd15")[0], form)
    sample = submit(ws, request(ws, adapters=[{"id": row.id}]))
    task = SampleTask.read(ws.home / "samples" / sample.id)
    assert task.adapters[0].peft == row.metadata["peft"]


def test_the_sampler_draws_with_it(ws, form, folder):
    family = load("sd15", ws.resolve(ws.catalog.get(Base, "pocket").location))
    place = peft_folder(form, folder / "ink")
    take_in(ws, folder)
    (place / CONFIG).unlink()
    row = ws.catalog.get(Adapter, "ink")
    known = PeftConfig.from_json(row.metadata["peft"])
    stack = AdapterStack(family)
    stack.use([AdapterUseInStack("ink", ws.resolve(row.path), "k", 1.0, 1.0, peft=known)])
    layer = family.denoiser.get_submodule(MODULES[2].removeprefix("unet."))
    x = torch.randn(3, layer.weight.shape[1])
    wanted = x @ (layer.weight + torch.from_numpy(form.delta(MODULES[2]))).T
    torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-5)


def test_a_missing_configuration_is_said_and_learned_later(ws, form, folder):
    place = peft_folder(form, folder / "ink", alpha=0)
    report = take_in(ws, folder)
    assert report.notes == [(str(place / WEIGHTS), ASSUMED)]
    assert ws.catalog.get(Adapter, "ink").alpha == 4.0
    peft_folder(form, folder / "other")
    shutil.move(folder / "other" / CONFIG, place / CONFIG)
    shutil.rmtree(folder / "other")
    report = take_in(ws, folder)
    assert report.known == 1
    assert report.notes == [(str(place / WEIGHTS), "the strength of ink is known now: alpha 10, rank 4")]
    row = ws.catalog.get(Adapter, "ink")
    assert row.alpha == ALPHA
    assert row.metadata["peft"]["config"]["lora_alpha"] == ALPHA
    assert not take_in(ws, folder).notes


def test_another_copy_tells_it(ws, form, folder):
    peft_folder(form, folder / "ink", alpha=0)
    take_in(ws, folder)
    peft_folder(form, folder / "later")
    report = take_in(ws, folder)
    assert (len(report.duplicates), ws.catalog.get(Adapter, "ink").alpha) == (1, ALPHA)
    assert report.notes[-1][1] == "the strength of ink is known now: alpha 10, rank 4"


def test_the_same_weights_at_another_strength_are_said(ws, form, folder):
    peft_folder(form, folder / "ink")
    take_in(ws, folder)
    peft_folder(form, folder / "later", alpha=2.0)
    report = take_in(ws, folder)
    assert "at another strength (alpha 2, where ink has 10)" in report.notes[-1][1]
    assert ws.catalog.get(Adapter, "ink").alpha == ALPHA


def test_an_adapter_for_a_changed_base_gets_its_line_and_no_row(ws, form, folder):
    place = peft_folder(form, folder / "ink")
    config = json.loads((place / CONFIG).read_text()) | {"init_lora_weights": "pissa"}
    (place / CONFIG).write_text(json.dumps(config))
    report = take_in(ws, folder)
    assert ws.catalog.count(Adapter) == 0
    assert "fits only the base that was changed for it" in report.bad[0][1]
