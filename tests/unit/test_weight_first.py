"""Weight first equals PEFT's order of operations, forward and backward."""

import pytest
import torch

from trainers.families import FAMILIES
from trainers.families.base import BaseFiles
from trainers.methods import attach
from trainers.recipe import AdapterSection
from trainers.weight_first import apply_weight_first

CPU = torch.device("cpu")
SECTION = AdapterSection(rank=4, alpha=6.0, conv_rank=3, train_text_encoder=True, text_rank=2)


def prepared(folder, section=SECTION):
    family = FAMILIES["sd15"].load_class()(BaseFiles(str(folder)), dtype=torch.float32, device=CPU)
    trainables = attach(family, section, seed=0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in trainables.parameters:
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return family, trainables


def step(family, trainables):
    x_t = torch.randn(2, 4, 8, 6, generator=torch.Generator().manual_seed(4))
    cond = family.conditioning(family.tokenize(["a red disc", "x"]))
    prediction = family.predict(x_t, torch.tensor([5, 700]), cond, [])
    prediction.square().mean().backward()
    return prediction.detach(), {key: p.grad for key, p in trainables.named.items()}


def test_same_prediction_and_gradients(tiny_sd15):
    family, trainables = prepared(tiny_sd15)
    expected, gradients = step(family, trainables)
    other, changed = prepared(tiny_sd15)
    assert apply_weight_first(changed, CPU) == len(changed.named) // 2
    prediction, found = step(other, changed)
    torch.testing.assert_close(prediction, expected, atol=1e-5, rtol=1e-4)
    for key, gradient in gradients.items():
        torch.testing.assert_close(found[key], gradient, atol=1e-6, rtol=2e-3, msg=key)
    with changed.disabled(), trainables.disabled(), torch.no_grad():
        cond = {"hidden": torch.randn(1, 77, 32)}
        x_t, t = torch.randn(1, 4, 8, 8), torch.tensor([9])
        base = family.predict(x_t, t, cond, [])
        torch.testing.assert_close(other.predict(x_t, t, cond, []), base, atol=1e-6, rtol=1e-6)


def test_an_adapter_of_zeros_rounds_as_none_does(tiny_sd15):
    family, trainables = prepared(tiny_sd15)
    apply_weight_first(trainables, CPU)
    with torch.no_grad():
        for name, parameter in trainables.named.items():
            parameter *= "lora_B" not in name
        x_t, t, cond = torch.randn(1, 4, 8, 8), torch.tensor([9]), {"hidden": torch.randn(1, 77, 32)}
        adapted = family.predict(x_t, t, cond, [])
        with trainables.disabled():
            assert torch.equal(family.predict(x_t, t, cond, []), adapted)


@pytest.mark.parametrize(
    ("section", "device"),
    [(SECTION.model_copy(update={"dropout": 0.5}), CPU), (SECTION, torch.device("cuda"))],
    ids=["dropout", "gpu"],
)
def test_left_alone_where_it_does_not_fit(section, device, tiny_sd15):
    assert apply_weight_first(prepared(tiny_sd15, section)[1], device) == 0


def test_large_layers_keep_their_order(tiny_sd15, monkeypatch):
    monkeypatch.setattr("trainers.weight_first.LARGEST", 1024)
    _, trainables = prepared(tiny_sd15)
    changed = apply_weight_first(trainables, CPU)
    assert 0 < changed < len(trainables.named) // 2
