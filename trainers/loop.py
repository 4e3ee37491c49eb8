"""The one training loop. It knows batches, losses and steps; it does not know families.

Shapes: B pictures of a batch; latents (B, C, h, w); t and weights (B,).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch import Tensor

from trainers.data import Batch
from trainers.families.base import Family
from trainers.flat import Flat, refresh
from trainers.objectives import Objective
from trainers.plan import draw_seed
from trainers.preservation import BasePrediction

if TYPE_CHECKING:
    from trainers.session import Session


def train(session: "Session") -> None:
    """Steps until the recipe's last one, or until the run is asked to stop.

    All random numbers of a step come from (seed, step, micro-batch), so a run that is resumed at any
    checkpoint goes on bit for bit, and several processes learn what one would from all their pictures.

    Raises:
        NotFinite: loss or gradient became NaN or infinite at most `readback.LAG` steps ago.
    """
    s, accelerator = session, session.accelerator
    batches = s.batches()
    s.milestones.begin(s.start)
    for step in range(s.start + 1, s.max_steps + 1):
        s.prepare_step(step)
        loss, names = torch.zeros((), device=accelerator.device), list[str]()
        for micro in range(s.accumulate):
            batch = next(batches).to(accelerator.device)
            with accelerator.accumulate(s.family.denoiser):
                part = backward(
                    accelerator,
                    s.family,
                    s.objective,
                    batch,
                    s.generator(step, micro),
                    pieces=s.rungs.pieces,
                    base=s.base,
                    flats=s.learning.flats,
                    even=s.shared,
                )
            loss += part / s.accumulate
            names += batch.names
        loss, stop = share_gradients(session, loss)
        norm = accelerator.clip_grad_norm_(s.learning.parameters, s.max_grad_norm)
        s.optimizer.step()
        s.optimizer.zero_grad(set_to_none=False)  # gradients are views of one buffer and stay so
        refresh(s.learning.flats)
        s.learning.ema.update()
        s.readback.push(step, loss, norm, stop, names, s.rates())
        s.milestones.after(step)
        if s.must_stop():
            break
    s.milestones.end()


def backward(
    accelerator: Accelerator,
    family: Family,
    objective: Objective,
    batch: Batch,
    generator: torch.Generator,
    pieces: int = 1,
    base: BasePrediction | None = None,
    flats: Sequence[Flat] = (),
    *,
    even: bool = False,
) -> Tensor:
    """Add the gradients of a batch at drawn noise and timesteps; returns its loss, a scalar without a graph.

    In several pieces it is the same mean over the same draws, with less in memory at a time. With several
    processes their mean is that of all pictures together. Of `flats` the stand-ins' gradients are gathered.
    `even`: see `passes`.
    """
    shape, own = batch.drawn
    noise, t = objective.sample_noise(shape, generator), objective.sample_t(shape, generator)
    noise, t, shown = noise[own], t[own], objective.perturb(noise, generator)[own]
    count, total = len(batch.latents), torch.zeros((), device=batch.latents.device)
    for rows, share in passes(count, pieces, even=even):
        with accelerator.autocast():
            part = error(family, objective, batch.rows(rows), noise[rows], t[rows], shown[rows], base)
        part = part * (share * batch.portion)
        accelerator.backward(part)
        for flat in flats:
            flat.gather()
        total += part.detach()
    return total


def cuts(count: int, pieces: int) -> list[slice]:
    """At most `pieces` runs of nearly equal length that cover 0 .. count - 1."""
    pieces = min(pieces, count)
    return [slice(count * n // pieces, count * (n + 1) // pieces) for n in range(pieces)]


def passes(count: int, pieces: int, *, even: bool) -> list[tuple[slice, float]]:
    """Rows of each piece and their share of the batch.

    `even`: `pieces` of them also where there are fewer rows, with a share of 0: processes that share a base
    have to ask it equally often.
    """
    parts = cuts(count, pieces)
    idle = [(slice(0, 1), 0.0)] * (pieces - len(parts)) if even else []
    return [*((rows, len(range(*rows.indices(count))) / count) for rows in parts), *idle]


def error(
    family: Family,
    objective: Objective,
    batch: Batch,
    noise: Tensor,
    t: Tensor,
    shown: Tensor | None = None,
    base: BasePrediction | None = None,
) -> Tensor:
    """Mean over the batch of weight(t) * sample weight * mean penalty, in fp32; masks weigh the mean.

    Args:
        family: With the adapter attached.
        objective: What is asked.
        batch: On the family's device.
        noise: (B, C, h, w), what the target is made from.
        t: (B,) timesteps.
        shown: (B, C, h, w) noise that x_t is made with, where it is another.
        base: Gives the target of rows that `batch.from_base` marks.
    """
    x0 = batch.latents
    noise, t = noise.to(x0, non_blocking=True), t.to(x0.device, non_blocking=True)
    shown = noise if shown is None else shown.to(x0, non_blocking=True)
    x_t, target = objective.corrupt(x0, shown, t), objective.target(x0, noise, t)
    if base and (base.always or batch.from_base is not None):
        target = base.into(target, batch, x_t, t)
    prediction = family.predict(x_t, t, family.conditioning(batch.cond), batch.geometry).float()
    penalty = objective.penalty(prediction, target, t)
    penalty = penalty if batch.mask is None else penalty * batch.mask
    return (penalty.flatten(1).mean(1) * objective.weight(t) * batch.weight).mean()


def step_generator(seed: int, step: int, micro: int, rank: int) -> torch.Generator:
    """CPU generator of one micro-batch's noise and timesteps, of all processes together; the global ones are
    seeded too, for dropout, which each process has of its own."""
    place = draw_seed(seed, "noise", step, micro, rank)
    torch.default_generator.manual_seed(place)  # torch.manual_seed would visit every kind of device: 1 ms
    if torch.cuda.is_available():
        torch.cuda.manual_seed(place)
    return torch.Generator().manual_seed(draw_seed(seed, "noise", step, micro, 0))


def share_gradients(session: "Session", loss: Tensor) -> tuple[Tensor, Tensor]:
    """Average gradients and loss over the processes in one flat all-reduce; returns loss and stop vote.

    Only adapters have gradients, a few megabytes, so there is nothing to overlap with the backward pass and
    no need to wrap the models. The stop vote rides along: every process sees the same sum at the same step.
    """
    stop = torch.tensor(float(session.wants_stop()), device=loss.device)
    if session.accelerator.num_processes == 1:
        return loss, stop
    gradients = [p.grad for p in session.learning.parameters if p.grad is not None]
    flat = torch.cat([*gradients, loss.view(1), stop.view(1)])
    flat = session.accelerator.reduce(flat, "mean")
    assert isinstance(flat, Tensor)
    sizes = [g.numel() for g in gradients]
    for gradient, mean in zip(gradients, flat[:-2].split(sizes), strict=True):
        gradient.copy_(mean)
    return flat[-2], flat[-1]
