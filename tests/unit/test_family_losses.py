"""The loss of one batch, of every family, against a calculation from the papers without our code.

Only the caches' output (latents, conditioning) and the draws are taken over; noising, target, the denoiser's
inputs, weight and means are done here, with diffusers' scheduler and the plain modules.
"""

import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from tests.support.bases import save_base
from trainers.data import Batch
from trainers.families import FAMILIES
from trainers.families.base import BaseFiles, Use
from trainers.loop import backward, error
from trainers.plan import Geometry
from trainers.recipe import ObjectiveSection

CPU = torch.device("cpu")
GEOMETRY = [Geometry((64, 48), (0, 4), (32, 24)), Geometry((40, 30), (0, 0), (32, 24))]
WEIGHTS = torch.tensor([1.0, 0.25])


@pytest.fixture(params=sorted(FAMILIES), scope="module")
def family(request, tmp_path_factory):
    folder = save_base(request.param, tmp_path_factory.mktemp(request.param) / "base")
    cls = FAMILIES[request.param].load_class()
    return cls(BaseFiles(str(folder)), dtype=torch.float32, device=CPU, use=Use(guidance=2.0))


def batch_of(family) -> Batch:
    return Batch(
        latents=torch.randn(2, 4, 8, 6, generator=torch.Generator().manual_seed(1)),
        cond=family.encode_text(["a red disc", ""]),
        geometry=GEOMETRY,
        weight=WEIGHTS,
        names=["a", "b"],
        captions=["a red disc", ""],
        epoch=0,
        index=0,
    )


def diffusion_loss(family, batch, noise, t) -> float:
    """Ho et al. 2020, eq. 14 with min-SNR weights (gamma 5), or its v form (Salimans and Ho 2022, app. D)."""
    scheduler = DDPMScheduler.from_config(family.scheduler_config())
    x0, unet = batch.latents, family.part("unet")
    velocity = scheduler.config["prediction_type"] == "v_prediction"
    target = scheduler.get_velocity(x0, noise, t) if velocity else noise
    more = {}
    if family.name == "sdxl":
        sizes = [[64, 48, 0, 4, 32, 24], [40, 30, 0, 0, 32, 24]]
        more["added_cond_kwargs"] = {"text_embeds": batch.cond["pooled"], "time_ids": torch.tensor(sizes)}
    said = unet(scheduler.add_noise(x0, noise, t), t, batch.cond["hidden"], **more).sample
    total = 0.0
    for row, step in enumerate(t.tolist()):
        signal = float(scheduler.alphas_cumprod[step])
        snr = signal / (1 - signal)
        weight = min(snr, 5.0) / (snr + 1 if velocity else snr)
        total += float(((said[row] - target[row]) ** 2).mean()) * weight * float(WEIGHTS[row])
    return total / len(t)


def flow_loss(family, batch, noise, t) -> float:
    """Esser et al. 2024, eq. 2 and 3 for the rectified flow: || v(z_t, t) - (noise - x0) ||^2."""
    x0, transformer = batch.latents, family.part("transformer")
    rows = []
    for row, time in enumerate(t.tolist()):
        z = (1 - time) * x0[row : row + 1] + time * noise[row : row + 1]
        hidden, pooled = batch.cond["hidden"][row : row + 1], batch.cond["pooled"][row : row + 1]
        if family.name == "sd35":
            step = torch.tensor([1000 * time])
            said = transformer(
                z, encoder_hidden_states=hidden, pooled_projections=pooled, timestep=step
            ).sample
        else:
            # tokens are patches: channel, row in patch, column in patch
            tokens = [
                z[0, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten() for i in range(4) for j in range(3)
            ]
            places = [[0, i, j] for i in range(4) for j in range(3)]
            out = transformer(
                torch.stack(tokens)[None],
                encoder_hidden_states=hidden,
                pooled_projections=pooled,
                timestep=torch.tensor([time]),
                guidance=torch.tensor([2.0]),
                img_ids=torch.tensor(places, dtype=torch.float32),
                txt_ids=torch.zeros(hidden.shape[1], 3),
            ).sample[0]
            said = torch.empty_like(z)
            for token, (_, i, j) in zip(out, places, strict=True):
                said[0, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = token.view(4, 2, 2)
        rows.append(float(((said - (noise[row] - x0[row])) ** 2).mean()) * float(WEIGHTS[row]))
    return sum(rows) / len(rows)


@torch.no_grad()
def test_loss_of_a_batch_equals_the_papers_formula(family):
    flow = FAMILIES[family.name].flow
    section = ObjectiveSection(
        guidance=2.0 if family.guidance_input else 1.0, snr_gamma=None if flow else 5.0
    )
    objective, batch = family.make_objective(section), batch_of(family)
    noise = torch.randn(2, 4, 8, 6, generator=torch.Generator().manual_seed(2))
    t = torch.tensor([0.21, 0.83]) if flow else torch.tensor([11, 700])
    expected = (flow_loss if flow else diffusion_loss)(family, batch, noise, t)
    assert float(error(family, objective, batch, noise, t)) == pytest.approx(expected, rel=1e-5)
    assert expected > 0.01


@torch.no_grad()
def test_a_step_draws_its_time_by_the_law(family):
    """Noise first, then times: the law, the base's shift and the size of the picture."""
    objective, batch = family.make_objective(ObjectiveSection()), batch_of(family)
    nothing = SimpleNamespace(autocast=nullcontext, backward=lambda _: None)
    found = float(backward(nothing, family, objective, batch, torch.Generator().manual_seed(9)))
    generator = torch.Generator().manual_seed(9)
    noise = torch.randn(2, 4, 8, 6, generator=generator)
    if not FAMILIES[family.name].flow:
        t = torch.randint(0, 1000, (2,), generator=generator)
    else:
        u = torch.rand(2, generator=generator)
        odds = [math.exp(math.sqrt(2) * float(torch.erfinv(2 * one - 1))) for one in u]  # exp(n), n normal
        factor = 3.0 if family.name == "sd35" else math.exp(calculate_shift(12, 256, 4096, 0.5, 1.15))
        t = torch.tensor([factor * odd / (1 + factor * odd) for odd in odds])
    assert found == pytest.approx(float(error(family, objective, batch, noise, t)), rel=1e-5)
