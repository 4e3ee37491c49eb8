"""Two processes on a CPU (gloo): one result, one writer, one decision to stop."""

import os
import subprocess
import time
from types import SimpleNamespace

import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.support.forked import Forked
from tests.support.runs import environment, recipe, resume, start_trainer, train, write_run
from tests.support.serving import free_port
from trainers.data import BatchSource
from trainers.loop import share_gradients
from trainers.plan import Geometry, Item
from trainers.rundir import ManifestItem


def start_ranks(rundir, count: int = 2) -> Forked:
    """`torch.distributed.run` as the executor starts it, but forked, and so are its ranks."""
    words = ["--standalone", "--nproc_per_node", str(count), "-m", "trainers.run", str(rundir.path)]
    with rundir.file("log.txt").open("ab") as log:
        return Forked(
            "tests.support.launcher",
            words,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | environment(),
            start_new_session=True,
        )


@pytest.mark.slow
def test_two_ranks_train_and_one_writes(tmp_path, tiny_sd15, pictures):
    changes = {"train.max_steps": 4, "checkpoints.every": 2, "preview.every": 4, "train.batch_size": 1}
    rundir = write_run(tmp_path / "ranks", tiny_sd15, pictures[:4], changes)
    assert start_ranks(rundir).wait(240) == 0, rundir.file("log.txt").read_text()
    assert rundir.read_status().state == "finished"
    assert [line["step"] for line in rundir.read_metrics()] == [1, 2, 3, 4]
    assert len(rundir.previews()) == 2 + 2 * 2
    assert all(torch.isfinite(tensor).all() for tensor in load_file(rundir.adapter).values())


@pytest.mark.parametrize(("precision", "near"), [("fp32", 1e-5), ("bf16", 1e-2)])
def test_two_ranks_learn_what_one_with_twice_the_batch_does(precision, near, tmp_path, tiny_sd15, pictures):
    """Five pictures of two shapes: shares of one picture and of two, at the same noise and timesteps."""
    changes = {"train.max_steps": 4, "optimizer.name": "adamw", "data.caption_dropout": 0.0}
    changes["train.precision"] = precision
    one = write_run(tmp_path / "one", tiny_sd15, pictures, changes | {"train.batch_size": 4})
    assert train(one) == 0
    two = write_run(tmp_path / "two", tiny_sd15, pictures, changes | {"train.batch_size": 2})
    assert start_ranks(two).wait(240) == 0, two.file("log.txt").read_text()
    for left, right in zip(one.read_metrics(), two.read_metrics(), strict=True):
        assert left["loss"] == pytest.approx(right["loss"], rel=near)
        assert left["grad_norm"] == pytest.approx(right["grad_norm"], rel=10 * near)
    theirs = load_file(two.adapter)
    if precision == "fp32":
        assert all((theirs[key] - value).abs().max() < near for key, value in load_file(one.adapter).items())
    flat = [torch.cat([tensor.flatten() for tensor in load_file(run.adapter).values()]) for run in (one, two)]
    assert torch.cosine_similarity(*flat, dim=0) > 0.99


@pytest.mark.parametrize("cells", [(8, 8), (9, 7), (1, 1)])
def test_shares_draw_the_latents_that_one_process_would(cells):
    """Also where a picture's numbers are no multiple of the sixteen that torch draws at once."""

    class Latents:
        def get(self, item, *, flip):
            return torch.zeros(4, *cells), torch.ones(4, *cells)

    sources = [
        ManifestItem(image=str(n), pixel_hash=str(n), width=64, height=64, caption=f"{n}") for n in range(6)
    ]
    items = [Item(n, source, Geometry((64, 64), (0, 0), (64, 64))) for n, source in enumerate(sources)]

    def told(texts):
        return {"n": torch.zeros(len(texts))}

    def batch(size, rank, world):
        source = BatchSource(items, Latents(), told, recipe().data, 3, size, rank=rank, world=world)
        return next(source.batches())

    whole, shares = batch(6, 0, 1), [batch(2, rank, 3) for rank in range(3)]
    assert [name for share in shares for name in share.names] == whole.names
    assert torch.equal(torch.cat([share.latents for share in shares]), whole.latents)


def test_a_rank_that_is_killed_ends_the_run_and_it_resumes_to_the_bit(tmp_path, tiny_sd15, pictures):
    changes = {"train.max_steps": 12, "train.batch_size": 1, "checkpoints.every": 2, "adapter.dropout": 0.1}
    whole = write_run(tmp_path / "whole", tiny_sd15, pictures, changes)
    assert start_ranks(whole).wait(240) == 0, whole.file("log.txt").read_text()
    broken = write_run(tmp_path / "broken", tiny_sd15, pictures, changes)
    launcher = start_ranks(broken)
    while len(broken.read_metrics()) < 5:
        time.sleep(0.01)
    ranks = psutil.Process(launcher.pid).children()
    assert len(ranks) == 2
    ranks[1].kill()
    assert launcher.wait(240) != 0
    assert not any(rank.is_running() and rank.status() != "zombie" for rank in ranks)
    assert len(broken.read_metrics()) < 12
    resume(broken)
    assert start_ranks(broken).wait(240) == 0, broken.file("log.txt").read_text()
    theirs = load_file(broken.adapter)
    assert all(torch.equal(theirs[key], value) for key, value in load_file(whole.adapter).items())


def test_one_rank_is_asked_to_stop_and_all_do(tmp_path, tiny_sd15, pictures):
    changes = {"train.max_steps": 100000, "train.batch_size": 1, "checkpoints.every": 50000}
    rundir = write_run(tmp_path / "run", tiny_sd15, pictures[:4], changes)
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [start_trainer(rundir, RANK=rank, LOCAL_RANK=rank, **group) for rank in "01"]
    ranks[0].wait_for_step(rundir, 3)
    ranks[1].terminate()
    said = rundir.file("log.txt").read_text
    assert [rank.wait() for rank in ranks] == [0, 0], said()
    status = rundir.read_status()
    assert status.state == "stopped", said()
    assert [int(folder.name[5:]) for folder in rundir.checkpoints()] == [status.step]


@pytest.mark.parametrize("asked", [False, True])
def test_gradients_loss_and_stop_vote_are_averaged_in_one_call(asked):
    parameters = [nn.Parameter(torch.zeros(size)) for size in (6, 4, 1)]
    parameters[0].grad, parameters[1].grad = torch.arange(6.0), torch.ones(4)
    other = torch.tensor([*[10.0] * 6, *[3.0] * 4, 0.5, 0.0])  # the other process: gradients, loss, no wish
    calls = []

    def reduce(flat, how):
        calls.append(how)
        return (flat + other) / 2

    session = SimpleNamespace(
        accelerator=SimpleNamespace(num_processes=2, reduce=reduce),
        learning=SimpleNamespace(parameters=parameters),
        wants_stop=lambda: asked,
    )
    loss, stop = share_gradients(session, torch.tensor(1.5))
    assert calls == ["mean"]
    assert parameters[0].grad.tolist() == [5.0, 5.5, 6.0, 6.5, 7.0, 7.5]
    assert parameters[1].grad.tolist() == [2.0] * 4
    assert parameters[2].grad is None  # a frozen text encoder stays out of it
    assert (loss.item(), stop.item()) == (1.0, 0.5 if asked else 0.0)
