"""The quick step learns what the usual one does: same loss, and gradients that point the same way."""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig

from studio.pocket.check import MODEL
from trainers.data import Batch
from trainers.families import FAMILIES
from trainers.families.base import BaseFiles
from trainers.flat import Flat
from trainers.loop import error
from trainers.methods import attach
from trainers.plan import Geometry
from trainers.recipe import AdapterSection
from trainers.recipe_fields import ObjectiveSection
from trainers.weight_first import apply_weight_first

CPU = torch.device("cpu")
RANK, ALPHA, ROWS = 4, 6.0, 2
TARGETS = r".*attn\d\.(to_[qkv]|to_out\.0)"


def a_batch(width: int) -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch(
        latents=torch.randn(ROWS, 4, 16, 16, generator=generator),
        cond={"hidden": torch.randn(ROWS, 77, width, generator=generator)},
        geometry=[Geometry((64, 64), (0, 0), (64, 64))] * ROWS,
        weight=torch.ones(ROWS),
        names=["a", "b"],
        captions=["", ""],
        epoch=0,
        index=0,
    )


def test_gradients_of_the_quick_step_are_those_of_a_plain_one():
    noise, t = (
        torch.randn(ROWS, 4, 16, 16, generator=torch.Generator().manual_seed(2)),
        torch.tensor([90, 700]),
    )
    family: Any = FAMILIES["sd15"].load_class()(BaseFiles(str(MODEL)), dtype=torch.float32, device=CPU)
    trainables = attach(family, AdapterSection(rank=RANK, alpha=ALPHA, targets=TARGETS), seed=0)
    with torch.no_grad():
        for parameter in trainables.parameters:
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    assert apply_weight_first(trainables, CPU) == len(trainables.named) // 2
    flat = Flat(trainables.named)
    batch = a_batch(family.denoiser.config.cross_attention_dim)
    quick = error(family, family.make_objective(ObjectiveSection()), batch, noise, t)
    quick.backward()

    unet: Any = UNet2DConditionModel.from_pretrained(MODEL, subfolder="unet", torch_dtype=torch.float32)
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS))
    learning = {
        f"unet.{name.replace('.default', '')}": p for name, p in unet.named_parameters() if p.requires_grad
    }
    assert learning.keys() == trainables.named.keys()
    with torch.no_grad():
        for key, parameter in learning.items():
            parameter.copy_(trainables.named[key])
    noisy = DDPMScheduler.from_pretrained(MODEL, subfolder="scheduler").add_noise(batch.latents, noise, t)
    plain = F.mse_loss(unet(noisy, t, batch.cond["hidden"], return_dict=False)[0], noise)
    plain.backward()

    torch.testing.assert_close(quick, plain, atol=1e-6, rtol=1e-5)
    found = torch.cat([p.grad.flatten() for p in flat.named.values()])
    wanted = torch.cat([learning[key].grad.flatten() for key in flat.named])
    assert wanted.abs().max() > 0
    assert torch.cosine_similarity(found, wanted, dim=0) > 1 - 1e-6
    torch.testing.assert_close(found.norm(), wanted.norm(), atol=0, rtol=1e-4)
