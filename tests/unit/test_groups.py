"""Ranks and rates by block, LoRA+, and what weight decay leaves alone."""

import pytest
import torch

from registry.errors import BadInput
from tests.support.methods import SECTIONS, load
from trainers.checkpoints import Learning, restore, same_optimizer
from trainers.ema import Ema
from trainers.groups import make_flats
from trainers.methods import attach
from trainers.optim import make_optimizer
from trainers.recipe import AdapterSection, OptimizerSection

CPU = torch.device("cpu")


@pytest.fixture
def family(tiny_sd15):
    return load("sd15", tiny_sd15)


def groups(family, adapter, **optimizer):
    section = OptimizerSection(lr=1e-3, text_lr=1e-4, **optimizer)
    flats = make_flats(attach(family, adapter, 0), section, "unet")
    made = make_optimizer(section.model_copy(update={"name": "adamw"}), flats, CPU)
    return flats, made.param_groups


def rate_of(flats, groups, ending):
    (found,) = {
        (round(group["lr"], 9), group["weight_decay"])
        for flat, group in zip(flats, groups, strict=True)
        for key in flat.named
        if key.endswith(ending)
    }
    return found


def test_one_group_per_role_without_any_of_it(family):
    flats, made = groups(family, AdapterSection(rank=2, train_text_encoder=True))
    assert [(flat.role, group["lr"]) for flat, group in zip(flats, made, strict=True)] == [
        ("denoiser", 1e-3),
        ("text", 1e-4),
    ]


def test_first_matching_pattern_and_the_ratio_of_lora_plus(family):
    flats, made = groups(
        family,
        AdapterSection(rank=2, train_text_encoder=True),
        block_lrs={r"mid_block\..*": 0.5, r".*attn2\.to_q": 0.25, r"text_encoder\..*": 2.0},
        lora_plus_ratio=16.0,
    )
    mid = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_q.lora_"
    down = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q.lora_"
    other = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_"
    assert rate_of(flats, made, f"{mid}A.weight") == (5e-4, 0.01)
    assert rate_of(flats, made, f"{mid}B.weight") == (8e-3, 0.01)
    assert rate_of(flats, made, f"{down}A.weight") == (2.5e-4, 0.01)
    assert rate_of(flats, made, f"{other}A.weight") == (1e-3, 0.01)
    assert rate_of(flats, made, f"{other}B.weight") == (1.6e-2, 0.01)
    assert rate_of(flats, made, "mlp.fc1.lora_A.weight") == (2e-4, 0.01)
    assert rate_of(flats, made, "mlp.fc1.lora_B.weight") == (3.2e-3, 0.01)


def test_decay_does_not_pull_away_from_the_base(family, tiny_sd15):
    flats, made = groups(family, AdapterSection(method="dora", rank=2))
    assert rate_of(flats, made, ".lora_A.weight") == (1e-3, 0.01)
    assert rate_of(flats, made, ".lora_magnitude_vector") == (1e-3, 0.0)
    flats, made = groups(load("sd15", tiny_sd15), AdapterSection(method="pissa", rank=2))
    assert {group["weight_decay"] for group in made} == {0.0}


@pytest.mark.parametrize(
    ("adapter", "optimizer", "wrong"),
    [
        ({}, {"block_lrs": {"nothing": 2.0}}, "block_lrs: 'nothing' decides about no layer"),
        ({"method": "loha"}, {"lora_plus_ratio": 2.0}, "lora_plus_ratio: loha has no A and B"),
        ({}, {"name": "prodigy", "lora_plus_ratio": 2.0}, "prodigy has one rate for everything"),
        ({"block_ranks": {"nothing": 2}}, {}, "block_ranks: 'nothing' decides about no layer"),
        ({"block_ranks": {".*": 0}}, {}, "block_ranks: leaves no layer of unet"),
    ],
)
def test_what_has_no_effect_is_refused(adapter, optimizer, wrong, family):
    with pytest.raises(BadInput, match=wrong):
        groups(family, AdapterSection(**adapter), **optimizer)


def test_ranks_by_block_keep_the_strength(family):
    trainables = attach(family, SECTIONS["block ranks"], 0)
    ranks = {key: len(p) for key, p in trainables.named.items() if key.endswith("lora_A.weight")}
    assert not any("down_blocks" in key and key.endswith("attn1.to_q.lora_A.weight") for key in ranks)
    assert any(key.endswith("attn2.to_q.lora_A.weight") for key in ranks)
    assert {rank for key, rank in ranks.items() if "mid_block" in key} == {3}
    assert {rank for key, rank in ranks.items() if "mlp.fc1" in key} == {1}
    assert {rank for key, rank in ranks.items() if "down_blocks" in key and "conv" in key} == {2}
    for path, _ in family.denoiser.named_modules():
        if path.endswith("base_layer"):
            scale = family.denoiser.get_submodule(path.removesuffix(".base_layer")).scaling["default"]
            assert scale == pytest.approx(1.0 if "conv" in path else 0.5)  # alpha / rank of the section


def learning(tiny_sd15, **optimizer):
    section = OptimizerSection(name="adamw", **optimizer)
    trainables = attach(load("sd15", tiny_sd15), AdapterSection(rank=2), 0)
    flats = make_flats(trainables, section, "unet")
    parameters = [flat.parameter for flat in flats]
    return Learning(trainables, flats, make_optimizer(section, flats, CPU), Ema(parameters, 0.9))


def test_a_checkpoint_of_other_groups_gives_its_weights_and_nothing_else(tiny_sd15, tmp_path, monkeypatch):
    from tests.support.runs import KEY
    from trainers.checkpoints import Store, read_numbers
    from trainers.rundir import RunDir

    one = learning(tiny_sd15, block_lrs={"mid_block.*": 0.5})
    with torch.no_grad():
        for index, flat in enumerate(one.flats):
            flat.parameter.fill_(index + 1.0)
    store = Store(RunDir(tmp_path), bytes.fromhex(KEY), 2)
    folder = store.save(1, one, {"optimizer_class": "AdamW"}, {}, None)
    other = learning(tiny_sd15, block_lrs={"up_blocks.*": 0.5})
    assert len(other.flats) == len(one.flats)
    assert same_optimizer(read_numbers(folder), one)
    assert not same_optimizer(read_numbers(folder), other)
    restore(folder, other, optimizer=False)
    for key, parameter in other.trainables.named.items():
        assert torch.equal(parameter, one.trainables.named[key])
    for mean, flat in zip(other.ema.means, other.flats, strict=True):
        assert torch.equal(mean, flat.parameter)
