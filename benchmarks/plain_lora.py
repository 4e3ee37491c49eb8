"""The yardstick: LoRA training written the usual way, as diffusers' `train_dreambooth_lora.py` goes about it.

A DataLoader opens and resizes the pictures anew in every epoch, VAE and text encoder run in every step, the
loss is read back, shown and logged to TensorBoard in every step, and the pipelines are imported. Same base,
pictures, captions, targets, ranks, optimizer, schedule, seeds and number of steps as the run directory that
it is given. Not part of the product.
"""

import random
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from trainers.families.sd import StableDiffusion15
from trainers.plan import final_caption
from trainers.recipe import Recipe, load_frozen
from trainers.rundir import RunDir


class Pictures(Dataset):
    """Pictures and tokens, made at each access."""

    def __init__(self, rundir: RunDir, recipe: Recipe, tokenizer: CLIPTokenizer) -> None:
        self.rundir, self.recipe, self.tokenizer = rundir, recipe, tokenizer
        self.items = rundir.read_manifest()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        item, side = self.items[index], self.recipe.train.resolution
        picture = (
            Image.open(self.rundir.resolve(item.image)).convert("RGB").resize((side, side), Image.LANCZOS)
        )
        pixels = torch.from_numpy(np.asarray(picture, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)
        caption = final_caption(item.caption, self.recipe.data.trigger)
        if random.random() < self.recipe.data.caption_dropout:
            caption = ""
        tokens = self.tokenizer(
            caption, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        )
        return pixels, tokens.input_ids[0]


@dataclass
class Models:
    """Everything stays in memory for the whole run."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    scheduler: DDPMScheduler


def load(base: str, recipe: Recipe) -> Models:
    """Frozen models, and the adapter on the UNet."""
    models = Models(
        CLIPTokenizer.from_pretrained(base, subfolder="tokenizer"),
        CLIPTextModel.from_pretrained(base, subfolder="text_encoder", dtype=torch.float32),
        AutoencoderKL.from_pretrained(base, subfolder="vae", dtype=torch.float32),
        UNet2DConditionModel.from_pretrained(base, subfolder="unet", dtype=torch.float32),
        DDPMScheduler.from_pretrained(base, subfolder="scheduler"),
    )
    for model in (models.vae, models.text_encoder, models.unet):
        model.requires_grad_(False)
    convolutions = StableDiffusion15.conv_targets if recipe.adapter.conv_rank else ()
    models.unet.add_adapter(
        LoraConfig(
            r=recipe.adapter.rank,
            lora_alpha=recipe.adapter.scale_alpha,
            target_modules=recipe.adapter.targets or [*StableDiffusion15.lora_targets, *convolutions],
            rank_pattern=dict.fromkeys(convolutions, recipe.adapter.conv_rank),
        )
    )
    return models


def batch_loss(
    models: Models, unet: torch.nn.Module, recipe: Recipe, pixels: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor:
    """Encode, noise, predict."""
    latents = models.vae.encode(pixels).latent_dist.sample() * models.vae.config.scaling_factor
    noise = torch.randn_like(latents)
    t = torch.randint(0, models.scheduler.config.num_train_timesteps, (len(latents),))
    noisy = models.scheduler.add_noise(latents, noise, t)
    hidden = models.text_encoder(tokens, return_dict=False)[0]
    prediction = unet(noisy, t, hidden, return_dict=False)[0]
    error = F.mse_loss(prediction.float(), noise, reduction="none").mean((1, 2, 3))
    return (error * min_snr(models.scheduler, t, recipe.objective.snr_gamma)).mean()


def main(folder: str) -> None:
    """Train the run in `folder`."""
    rundir = RunDir(Path(folder))
    recipe, base = load_frozen(rundir.file("recipe.json")), rundir.read_env().base_location
    random.seed(recipe.train.seed)
    torch.manual_seed(recipe.train.seed)
    torch.set_num_threads(recipe.train.num_threads or 1)
    accelerator = Accelerator(
        cpu=True,
        gradient_accumulation_steps=recipe.train.accumulate,
        log_with="tensorboard",
        project_dir=rundir.path / "logs",
    )
    accelerator.init_trackers("dreambooth-lora")
    models = load(base, recipe)
    unet = models.unet
    parameters = [p for p in unet.parameters() if p.requires_grad]
    rates = recipe.optimizer
    optimizer = torch.optim.AdamW(
        parameters,
        lr=rates.lr,
        betas=(rates.beta1, 0.999 if rates.beta2 is None else rates.beta2),
        weight_decay=rates.weight_decay,
        eps=rates.eps,
    )
    total = recipe.train.max_steps
    schedule = get_scheduler(
        "cosine", optimizer, num_warmup_steps=round(recipe.schedule.warmup * total), num_training_steps=total
    )
    loader = DataLoader(
        Pictures(rundir, recipe, models.tokenizer), recipe.train.batch_size, shuffle=True, drop_last=True
    )
    unet, optimizer, loader, schedule = accelerator.prepare(unet, optimizer, loader, schedule)
    unet.train()
    step, losses, bar = 0, [], tqdm(total=total)
    while step < total:
        for pixels, tokens in loader:
            with accelerator.accumulate(unet):
                loss = batch_loss(models, unet, recipe, pixels, tokens)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(parameters, recipe.train.max_grad_norm)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            step += 1
            logs = {"loss": loss.detach().item(), "lr": schedule.get_last_lr()[0]}
            bar.update(1)
            bar.set_postfix(**logs)
            accelerator.log(logs, step=step)
            losses.append(logs["loss"])
            if step == total:
                break
    layers = get_peft_model_state_dict(accelerator.unwrap_model(unet))
    StableDiffusionPipeline.save_lora_weights(rundir.path, unet_lora_layers=layers)
    accelerator.end_training()
    print(f"loss of the last 20 steps {sum(losses[-20:]) / len(losses[-20:]):.4f}")


def min_snr(scheduler: DDPMScheduler, t: torch.Tensor, gamma: float | None) -> torch.Tensor:
    """As in diffusers' scripts."""
    if gamma is None:
        return torch.ones(len(t))
    alphas = scheduler.alphas_cumprod[t]
    snr = alphas / (1 - alphas)
    return torch.stack([snr, gamma * torch.ones_like(snr)], dim=1).min(dim=1)[0] / snr


if __name__ == "__main__":
    main(sys.argv[1])
