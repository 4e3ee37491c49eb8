"""SIGKILL at random moments of saving: what is there is whole, and nothing that was kept is lost."""

import multiprocessing
import os
import random
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from trainers.checkpoints import Learning, Store, read_numbers, restore, snapshot
from trainers.ema import Ema
from trainers.flat import Flat
from trainers.methods import Trainables
from trainers.rundir import RunDir, checkpoint_step
from trainers.saving import Saver

pytestmark = pytest.mark.fault

KEY = b"key"
KILLS = 60


def learning() -> Learning:
    named = {f"unet.{n}.lora_B.weight": nn.Parameter(torch.zeros(64, 64)) for n in range(8)}
    flat = Flat(named)
    optimizer = torch.optim.AdamW([flat.parameter], lr=0.1)
    return Learning(Trainables(named, {}, {}, {}), [flat], optimizer, Ema([flat.parameter], 0.9))


def save_for_ever(folder: str, start: int, say) -> None:
    """Every weight is the number of its step, and changes while it is written: a mixture would show."""
    torch.set_num_threads(1)
    state, saver = learning(), Saver(Store(RunDir(Path(folder)), KEY, keep=2))
    step = start
    say.send(start)  # setting up does not count: kills are for writes
    while True:
        step += 1
        with torch.no_grad():
            state.flats[0].parameter.fill_(step)
        state.optimizer.step()
        with torch.no_grad():
            state.flats[0].parameter.fill_(step)
        take = partial(snapshot, step, state, {"optimizer_class": "AdamW"}, {"format": "pt"})
        saver.save(take, None, written=partial(say.send, step))


def test_no_checkpoint_is_torn(tmp_path):
    context = multiprocessing.get_context("fork")
    store, acknowledged, torn = Store(RunDir(tmp_path), KEY, keep=2), 0, 0
    for _ in range(KILLS):
        ear, mouth = context.Pipe(duplex=False)
        child = context.Process(target=save_for_ever, args=(str(tmp_path), acknowledged, mouth))
        child.start()
        mouth.close()
        assert ear.recv() == acknowledged
        time.sleep(random.random() * 0.12)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        while ear.poll():
            try:
                acknowledged = ear.recv()
            except EOFError:
                break
        newest = store.latest()
        if newest is None:
            assert acknowledged == 0
            continue
        assert checkpoint_step(newest) >= acknowledged
        acknowledged = checkpoint_step(newest)
        state = learning()
        restore(newest, state)
        torn += not bool((state.flats[0].parameter == acknowledged).all())
        assert read_numbers(newest)["step"] == acknowledged
        store.sweep(acknowledged)
    assert torn == 0, f"{torn} of {KILLS}"
    assert acknowledged > 3
