"""What rules each other out in a recipe, and what has no effect: without torch, as the trainer has it."""

import re
import subprocess
import sys
from typing import Any, get_args

import pytest

from registry.errors import BadInput
from tests.support.runs import recipe
from trainers.families import FAMILIES
from trainers.fitting import Traits, check_recipe, circumstances, idle_remarks, unmet
from trainers.recipe import preset_by_name, preset_names, recipe_fields
from trainers.recipe_adapter import HAVE_AB
from trainers.recipe_fields import ONE_RATE, OWN_MEAN
from trainers.recipe_section import SamplerName
from trainers.recipe_text import flatten

FULL = {"adapter.method": "full"}
TEXT = {"adapter.train_text_encoder": True}


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_fits_and_none_of_its_values_is_idle(name: str):
    preset = preset_by_name(name)
    check_recipe(preset.model_copy(update={"data": preset.data.model_copy(update={"trigger": "zork"})}))
    assert idle_remarks(preset, preset, Traits()) == []


@pytest.mark.parametrize(
    ("family", "changes", "wrong"),
    [
        ("sd15", {"optimizer.name": "prodigy", "optimizer.block_lrs": {".*": 2.0}}, "prodigy has"),
        ("sd15", {"optimizer.name": "prodigy", "optimizer.lora_plus_ratio": 4.0}, "prodigy has one"),
        ("sd15", TEXT | {"optimizer.name": "prodigy", "optimizer.text_lr": 1e-5}, "text_lr: prodigy"),
        ("sd15", {"optimizer.name": "schedulefree", "optimizer.beta1": 0.0}, "beta1: is 0"),
        ("sd15", {"adapter.method": "loha", "optimizer.lora_plus_ratio": 4.0}, "loha has no A and B"),
        ("sd15", FULL | {"optimizer.lora_plus_ratio": 4.0}, "a full fine-tune has no A and B"),
        ("sd15", FULL | {"train.precision": "fp16"}, "train.precision: is fp16"),
        ("sd15", FULL | {"train.precision": "bf16", "optimizer.name": "prodigy"}, "cannot train bf16"),
        ("sd15", {"objective.shift": "static"}, "objective.shift: means nothing .* by diffusion"),
        ("sd15", {"objective.guidance": 3.0}, "objective.guidance: means nothing"),
        ("sd15", {"objective.mode_scale": 1.0}, "mode_scale: means .*_law is uniform"),
        ("flux1", {"objective.snr_gamma": 5.0}, "snr_gamma: means .* flow .*to none"),
        ("sd35", {"objective.noise_offset_varies": True}, "noise_offset_varies: means nothing .*to false"),
        ("sd35", {"objective.guidance": 3.0}, "guidance: is an input that this"),
        ("sd35", {"objective.shift": "off", "objective.shift_factor": 2.0}, "where objective.shift is off"),
        ("sd15", {"objective.zero_terminal_snr": "on", "objective.prediction": "epsilon"}, "epsilon"),
        ("sdxl", {"adapter.train_t5": True}, "adapter.train_t5: is on, but this base has no T5"),
        ("flux1", {"adapter.conv_rank": 4}, "adapter.conv_rank: is set, but this base has no convolutions"),
        ("sd35", {"preview.scheduler": "Euler"}, "preview.scheduler: is Euler, and a base of"),
        ("flux1", {"preservation.scheduler": "DDIM"}, "preservation.scheduler: is DDIM, and a base of flow"),
    ],
)  # fmt: skip
def test_what_the_trainer_could_not_do_is_refused(family: str, changes: dict[str, Any], wrong: str):
    check_recipe(recipe({}, family))
    with pytest.raises(BadInput, match=wrong) as caught:
        check_recipe(recipe(changes, family))
    assert caught.value.do


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("sd15", {"optimizer.name": "prodigy", "optimizer.text_lr": 1e-5}),  # no text encoder learns
        ("sd15", TEXT | {"optimizer.name": "prodigy", "optimizer.lr": 1.0, "optimizer.text_lr": 1.0}),
        ("sd15", {"objective.timestep_law": "mode", "objective.mode_scale": 1.0}),
        ("sd15", {"objective.zero_terminal_snr": "on"}),
        ("flux1", {"objective.guidance": 3.0, "adapter.train_t5": True, "objective.shift_factor": 2.0}),
        ("sd15", FULL | {"train.precision": "bf16", "optimizer.name": "adafactor"}),
    ],
)
def test_what_it_can_do_is_not(family: str, changes: dict[str, Any]):
    check_recipe(recipe(changes, family))


def test_what_is_known_of_the_base_counts_more_than_its_family():
    with pytest.raises(BadInput, match="has no T5"):
        check_recipe(recipe({"adapter.train_t5": True}, "sd35"), Traits(t5=False))
    with pytest.raises(BadInput, match="is an input that this base does not have"):
        check_recipe(recipe({"objective.guidance": 3.0}, "flux1"), Traits(guidance_input=False))
    with pytest.raises(BadInput, match="predicts epsilon"):
        check_recipe(recipe({"objective.zero_terminal_snr": "on"}), Traits(noise=True))


@pytest.mark.parametrize(
    ("family", "changes", "remark"),
    [
        ("sd15", {"data.text_length": 128}, "data.text_length .* only with bases that read captions with T5"),
        ("sd15", {"optimizer.text_lr": 1e-6}, "optimizer.text_lr .* a text encoder that learns along"),
        ("sd15", {"schedule.name": "linear", "schedule.power": 2.0}, "only with schedule.name polynomial"),
        (
            "sd15",
            {"schedule.power": 2.0, "optimizer.name": "schedulefree"},
            "only with optimizer.name auto or",
        ),
        ("sd15", {"data.crop_variants": 2}, "only with data.crop random"),
        ("sd15", {"tokens.vectors": 4}, "only with tokens.words set"),
        ("sd15", {"preservation.rows": 2}, "only with preservation.mode base_prediction"),
        ("sd15", {"data.keep_tokens": 2}, "only with data.shuffle_tags or data.tag_dropout"),
        ("sd15", FULL | {"adapter.targets": ".*"}, "only with adapter.method lora or"),
    ],
)
def test_what_has_no_effect_is_said(family: str, changes: dict[str, Any], remark: str):
    (said,) = [r for r in idle_remarks(recipe(changes, family), recipe({}, family), Traits()) if "eff" in r]
    assert re.search(remark, said)


def test_every_mark_asks_for_something_there_is():
    around = circumstances(flatten(recipe({}).model_dump()))
    fields = recipe_fields()
    for key, facts in fields.items():
        unmet(facts.needs, around)
        for need in facts.needs:
            choices = fields[need.what].choices if need.what in fields else need.values
            assert set(need.values) <= set(choices), key


def test_the_tables_without_torch_agree_with_those_of_the_trainer():
    from trainers.method_table import METHODS
    from trainers.optim import OPTIMIZERS
    from trainers.preview import SAMPLERS

    assert {name for name, method in METHODS.items() if method.has_ab} == set(HAVE_AB)
    assert {name for name, kind in OPTIMIZERS.items() if kind.one_rate} == set(ONE_RATE)
    assert {name for name, kind in OPTIMIZERS.items() if kind.own_mean} == set(OWN_MEAN)
    assert ("default", *SAMPLERS) == get_args(SamplerName)
    for info in FAMILIES.values():
        assert info.load_class().t5_encoder == info.t5


def test_it_costs_no_torch():
    code = "import sys, trainers.fitting; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
