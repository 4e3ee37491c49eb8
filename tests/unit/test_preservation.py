"""Base-prediction preservation: what the rows are, what they cost in random numbers, and that they keep."""

import sys
from dataclasses import replace

import pytest
import torch

from registry.errors import BadInput
from tests.support.runs import recipe, train, write_run
from trainers.data import Batch, Geometry
from trainers.families import FAMILIES
from trainers.families.base import BaseFiles
from trainers.loop import error
from trainers.methods import attach
from trainers.preservation import BasePrediction, PriorRows
from trainers.priors import check_preservation, class_caption, with_class_captions
from trainers.recipe import AdapterSection, ObjectiveSection, PreservationSection

CPU = torch.device("cpu")
KEPT = PreservationSection(mode="base_prediction", weight=0.5, rows=2)


@pytest.mark.parametrize(
    ("shown", "trigger", "prompt", "expected"),
    [
        ("zork, a red disc", "zork", "", "a red disc"),
        ("a photo of Zork dog, zork", "zork", "", "a photo of dog"),
        ("zorkish dog", "zork", "", "zorkish dog"),
        ("zork", "zork", "", ""),
        ("zork, a red disc", "zork", " a dog ", "a dog"),
        ("", "zork", "a dog", ""),  # dropped: the unconditional prediction is kept
    ],
)
def test_the_class_caption_is_the_caption_without_its_trigger(shown, trigger, prompt, expected):
    assert class_caption(shown, [trigger], prompt) == expected


def test_captions_of_prior_rows_are_encoded_too():
    with_rows = recipe({"data.trigger": "zork", "preservation.mode": "base_prediction"})
    assert with_class_captions(["", "zork, a disc"], with_rows) == ["", "a disc", "zork, a disc"]
    assert with_class_captions(["", "zork, a disc"], recipe({"data.trigger": "zork"})) == ["", "zork, a disc"]


def test_preservation_that_would_undo_the_learning_is_refused():
    with pytest.raises(BadInput, match="trigger word: there is none"):
        check_preservation(recipe({"preservation.mode": "base_prediction"}))
    with pytest.raises(BadInput, match="class_prompt: is empty"):
        check_preservation(recipe({"preservation.mode": "class_pictures"}))
    check_preservation(recipe({"preservation.mode": "base_prediction", "data.trigger": "zork"}))
    named = {"preservation.mode": "base_prediction", "data.trigger": "zork"}
    for prompt in ("a Zork dog", "a [trigger] dog"):
        with pytest.raises(BadInput, match="would be kept from being learned"):
            check_preservation(recipe(named | {"preservation.class_prompt": prompt}))
    check_preservation(recipe(named | {"preservation.class_prompt": "a zorkian dog"}))
    check_preservation(recipe({"preservation.mode": "base_prediction", "preservation.class_prompt": "a dog"}))


def load(base, family="sd15"):
    return FAMILIES[family].load_class()(BaseFiles(str(base)), dtype=torch.float32, device=CPU)


def make_batch(conditioning, captions=("zork, a red disc", ""), channels=4):
    count = len(captions)
    latents = torch.randn(count, channels, 8, 8, generator=torch.Generator().manual_seed(1))
    geometry = [Geometry((40, 40), (0, 0), (32, 32))] * count
    names = [f"{index}.png" for index in range(count)]
    weight = torch.tensor([1.0, 3.0][:count])
    return Batch(latents, conditioning(list(captions)), geometry, weight, names, list(captions), 0, 0)


def move(trainables, scale=0.1):
    """Away from the start, as after training."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in trainables.parameters:
            parameter += scale * torch.randn(parameter.shape, generator=generator)


def test_rows_follow_the_batch_and_priors_get_none(tiny_sd15):
    family = load(tiny_sd15)
    batch = make_batch(family.encode_text)
    rows = PriorRows(KEPT, ["zork"], family.encode_text)
    assert rows.added(batch, ["class", "class"]) is batch
    both = rows.added(batch, ["", ""])
    assert both.captions == ["zork, a red disc", "", "a red disc", "", "a red disc", ""]
    assert both.mask is None
    assert both.from_base.tolist() == [False, False, True, True, True, True]
    assert torch.equal(both.latents, torch.cat([batch.latents] * 3))
    assert len(both.geometry) == 6
    assert both.names == batch.names * 3
    hidden = family.encode_text(both.captions)["hidden"]
    assert torch.allclose(both.cond["hidden"], hidden, atol=1e-6)
    # mean over the rows = mean of the pictures + 0.5 * mean of the prior rows
    assert (both.weight / 6).tolist() == pytest.approx([1 / 2, 3 / 2, 1 / 8, 3 / 8, 1 / 8, 3 / 8])
    masked = rows.added(replace(batch, mask=torch.rand(2, 1, 8, 8)), ["", ""])
    assert masked.mask.shape == (6, 1, 8, 8)
    assert (masked.mask[2:] == 1).all()  # what is kept is kept everywhere
    one = rows.added(batch, ["class", ""])
    assert one.captions == ["zork, a red disc", "", "", ""]
    assert one.to(CPU) is one


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_loss_is_the_pictures_plus_the_distance_from_the_base(name, text, request):
    """Against a calculation with two models: one with the adapter, one that never had any."""
    folder = request.getfixturevalue(f"tiny_{name}")
    family, base = load(folder, name), load(folder, name)
    objective = family.make_objective(ObjectiveSection(snr_gamma=None if FAMILIES[name].flow else 5.0))
    channels = family.config("vae")["latent_channels"]
    trainables = attach(family, AdapterSection(rank=4, train_text_encoder=text), 0)
    move(trainables)
    conditioning = family.tokenize if text else base.encode_text
    batch = PriorRows(KEPT, ["zork"], conditioning).added(
        make_batch(conditioning, channels=channels), ["", ""]
    )
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(batch.latents.shape, generator=generator)
    t = objective.probe_t(batch.latents.shape)
    found = error(family, objective, batch, noise, t, base=BasePrediction(family, trainables))

    x_t, weight = objective.corrupt(batch.latents, noise, t), objective.weight(t)
    with torch.no_grad():
        adapted = family.predict(x_t, t, family.encode_text(batch.captions), batch.geometry)
        untouched = base.predict(x_t, t, base.encode_text(batch.captions), batch.geometry)
        truth = objective.target(batch.latents, noise, t)
        instance = ((adapted - truth)[:2] ** 2).mean((1, 2, 3)) * weight[:2] * torch.tensor([1.0, 3.0])
        prior = ((adapted - untouched)[2:] ** 2).mean((1, 2, 3)) * weight[2:] * torch.tensor([1.0, 3.0] * 2)
    assert float(prior.mean()) > 0
    assert float(found.detach()) == pytest.approx(float(instance.mean() + 0.5 * prior.mean()), rel=1e-5)
    assert found.requires_grad


def test_asking_the_base_draws_no_random_number_and_leaves_no_trace(tiny_sd15):
    family = load(tiny_sd15)
    trainables = attach(family, AdapterSection(rank=4, dropout=0.5, train_text_encoder=True), 0)
    move(trainables)
    for parameter in trainables.text.values():
        parameter.requires_grad_(False)  # as after its time
    batch = PriorRows(KEPT, ["zork"], family.tokenize).added(make_batch(family.tokenize), ["", ""])
    before = torch.get_rng_state()
    target = torch.zeros(batch.latents.shape)
    filled = BasePrediction(family, trainables).into(target, batch, batch.latents, torch.full((6,), 500))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(filled[:2], target[:2])
    assert not target.any()
    assert not filled.requires_grad
    assert all(module.training for module in trainables.components.values())
    assert not any(parameter.requires_grad for parameter in trainables.text.values())
    assert all(parameter.requires_grad for parameter in trainables.denoiser.values())


def drift(base, rundir, prompts):
    """Mean squared distance between the predictions of the base and of the trained model on `prompts`."""
    from safetensors.torch import load_file

    from trainers.methods import load_tensors

    family = load(base)
    trainables = attach(family, AdapterSection(rank=4, alpha=2.0), 0)
    load_tensors(trainables, load_file(rundir.adapter))
    generator = torch.Generator().manual_seed(9)
    x_t = torch.randn(8 * len(prompts), 4, 8, 8, generator=generator)
    t = torch.linspace(50, 950, len(x_t)).long()
    cond = family.encode_text(prompts * 8)
    with torch.no_grad():
        adapted = family.predict(x_t, t, cond, [])
        with trainables.disabled():
            base_prediction = family.predict(x_t, t, cond, [])
    return float((adapted - base_prediction).square().mean())


def test_the_class_drifts_less_with_preservation(tmp_path, tiny_sd15, pictures, capsys):
    plain = {
        "train.max_steps": 24, "data.trigger": "zork", "optimizer.lr": 3e-3, "checkpoints.every": 24,
        "train.ema_decay": 0.0, "schedule.name": "constant",
    }  # fmt: skip
    kept = plain | {"preservation.mode": "base_prediction", "preservation.weight": 1.0}
    found = {}
    for name, changes in {"without": plain, "with": kept}.items():
        rundir = write_run(tmp_path / name, tiny_sd15, pictures, changes)
        assert train(rundir) == 0, rundir.file("log.txt").read_text()
        found[name] = drift(tiny_sd15, rundir, [item.caption for item in pictures])
    with capsys.disabled():
        line = "drift on the class: {without:.5f} without, {with:.5f} with preservation"
        sys.stdout.write(f"\n{line.format(**found)}\n")
    assert found["with"] < 0.8 * found["without"]
