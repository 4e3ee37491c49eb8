"""What the tests themselves stand on: models that are read from disk once."""

import shutil

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from transformers.models.clip.modeling_clip import CLIPTextModel

from tests.support.read_once import Mould


def test_a_cast_is_the_same_and_shares_nothing():
    first = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    first[1].weight = first[0].weight
    first[0].bias.requires_grad_(False)
    mould = Mould(first)
    made, other = mould.cast(), mould.cast()
    assert made[1].weight is made[0].weight
    assert [p.requires_grad for p in made.parameters()] == [p.requires_grad for p in first.parameters()]
    assert not any(module.training for module in made.modules())
    with torch.no_grad():
        for value in (*first.parameters(), *other.state_dict().values()):
            value.add_(1)
    again = mould.cast().state_dict()
    assert all(torch.equal(value, again[key]) for key, value in made.state_dict().items())
    assert not torch.equal(made[0].weight, first[0].weight)


def test_a_model_that_is_read_again_is_the_same_until_its_files_change(tiny_sd15, tmp_path):
    folder = shutil.copytree(tiny_sd15, tmp_path / "base")
    for cls, part in ((UNet2DConditionModel, "unet"), (CLIPTextModel, "text_encoder")):
        models = [cls.from_pretrained(folder, subfolder=part) for _ in range(4)]
        first, *others = (model.state_dict() for model in models)
        for other in others:
            assert first.keys() == other.keys()
            assert all(torch.equal(value, other[key]) for key, value in first.items())
            assert all(value.data_ptr() != other[key].data_ptr() for key, value in first.items())
        assert [model.training for model in models] == [False] * 4
        assert len({str(model.config) for model in models}) == 1
        with torch.no_grad():
            next(iter(models[0].parameters())).add_(1)
        models[0].save_pretrained(folder / part)
        changed = cls.from_pretrained(folder, subfolder=part).state_dict()
        assert all(torch.equal(value, changed[key]) for key, value in models[0].state_dict().items())
        half = cls.from_pretrained(folder, subfolder=part, torch_dtype=torch.bfloat16)
        assert half.dtype == torch.bfloat16
