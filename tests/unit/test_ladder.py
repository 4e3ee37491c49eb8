"""Memory that is short: the dry run leaves no trace, the ladder is climbed, said and remembered."""

import json
from dataclasses import asdict

import pytest
import torch

from tests.support.runs import resume, write_run
from tests.support.trained_here import ShortMemory, equal, losses, set_here, train_here
from trainers.data import Batch
from trainers.dry_run import largest_batch
from trainers.families.sd import StableDiffusion15
from trainers.fitting import CHECKPOINTED
from trainers.ladder import SETTLED, SLOW_STEPS, TYPICAL, Rungs, SlowWatch
from trainers.loop import cuts
from trainers.metrics import Reporter
from trainers.plan import Geometry
from trainers.run import run
from trainers.rundir import UNTRIED
from trainers.signals import StopFlag

TRAIN = {"train.max_steps": 4, "train.batch_size": 4, "checkpoints.every": 2, "optimizer.lr": 1e-3}


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    set_here(monkeypatch)


@pytest.fixture(scope="module")
def roomy_losses(tmp_path_factory, tiny_sd15, pictures):
    """Of the same run where there is room enough."""
    rundir = write_run(tmp_path_factory.mktemp("roomy"), tiny_sd15, pictures, TRAIN | {"train.dry_run": "on"})
    with pytest.MonkeyPatch.context() as patch:
        set_here(patch)
        train_here(rundir)
    return losses(rundir)


def rungs(rundir) -> dict:
    return json.loads(rundir.file("memory.json").read_text())


def test_a_dry_run_leaves_no_trace(tmp_path, tiny_sd15, pictures):
    changes = TRAIN | {"adapter.dropout": 0.2}
    runs = [
        write_run(tmp_path / wanted, tiny_sd15, pictures, changes | {"train.dry_run": wanted})
        for wanted in ("on", "off")
    ]
    for rundir in runs:
        assert train_here(rundir).status.warnings == []
    assert losses(runs[0]) == losses(runs[1])
    assert equal(*runs)
    assert not runs[0].file("memory.json").exists()


@pytest.mark.parametrize(
    ("room", "found"),
    [
        (3.5, Rungs(0.25)),
        (3.0, Rungs(0.5)),
        (2.0, Rungs(1.0)),
        (1.0, Rungs(1.0, "adamw8bit", 2)),
        (0.5, Rungs(1.0, "adamw8bit", 4)),
    ],
)
def test_the_ladder_is_climbed_said_and_remembered(
    room, found, roomy_losses, tmp_path, monkeypatch, tiny_sd15, pictures
):
    changes = TRAIN | {"train.dry_run": "on"}
    memory = ShortMemory(monkeypatch, room)
    rundir = write_run(tmp_path / "short", tiny_sd15, pictures, changes)
    warnings = train_here(rundir).status.warnings
    assert rungs(rundir) == asdict(found)
    assert memory.refused == len(warnings)
    said = [warning.partition("memory: ")[2] for warning in warnings]
    expected = [
        f"gradient checkpointing is on{blocks} (steps take longer)"
        for share, blocks in CHECKPOINTED.items()
        if share <= found.checkpointing
    ]
    expected += ["the optimizer is adamw8bit"] if found.optimizer else []
    expected += [f"batches are computed in {pieces} pieces" for pieces in (2, 4) if pieces <= found.pieces]
    assert said == expected
    assert warnings[0].startswith("the largest batch (4 x 32x32) does not fit")
    assert losses(rundir) == pytest.approx(roomy_losses, rel=1e-3)  # the same pictures, noise and mean


def test_a_resumed_run_takes_the_same_rungs(tmp_path, monkeypatch, tiny_sd15, pictures):
    changes = TRAIN | {"train.dry_run": "on"}
    memory = ShortMemory(monkeypatch, 1.0)
    whole = write_run(tmp_path / "whole", tiny_sd15, pictures, changes)
    train_here(whole)
    broken = write_run(tmp_path / "broken", tiny_sd15, pictures, changes | {"train.max_steps": 4})

    class Asked(StopFlag):
        """Asks for a stop after the second step."""

        def __bool__(self):
            return len(broken.read_metrics()) >= 1

    assert run(Reporter(broken), Asked()) == 0
    assert 0 < len(broken.read_metrics()) < 4
    resume(broken)
    refused = memory.refused
    assert train_here(broken).status.warnings == []
    assert memory.refused == refused
    assert losses(broken) == losses(whole)
    assert equal(broken, whole)


def test_below_the_last_rung_the_run_fails(tmp_path, monkeypatch, tiny_sd15, pictures):
    ShortMemory(monkeypatch, 0.1)
    rundir = write_run(tmp_path / "run", tiny_sd15, pictures, TRAIN | {"train.dry_run": "on"})
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        run(Reporter(rundir), StopFlag())


def test_memory_that_ends_on_the_way_takes_a_rung_when_resumed(tmp_path, monkeypatch, tiny_sd15, pictures):
    rundir = write_run(tmp_path / "run", tiny_sd15, pictures, TRAIN)
    ShortMemory(monkeypatch, 2.0, after=4)  # two steps, and two looks at the probe
    reporter = Reporter(rundir)
    with pytest.raises(torch.OutOfMemoryError):
        run(reporter, StopFlag())
    assert reporter.status.warnings == ["when resumed, gradient checkpointing is on (steps take longer)"]
    assert rungs(rundir)["checkpointing"]
    assert UNTRIED in rungs(rundir)  # for who starts the next attempt
    resume(rundir)
    train_here(rundir)
    assert rundir.adapter.exists()


def test_a_run_on_its_way_keeps_its_optimizer(tmp_path, monkeypatch, tiny_sd15, pictures):
    """After a resume on a smaller device: the state of AdamW is worth more than a rung."""
    changes = TRAIN | {"train.dry_run": "on", "train.gradient_checkpointing": True}
    first = write_run(tmp_path / "run", tiny_sd15, pictures, changes | {"train.max_steps": 2})
    train_here(first)
    first.adapter.unlink()
    rundir = write_run(tmp_path / "run", tiny_sd15, pictures, changes, resume=True)
    ShortMemory(monkeypatch, 1.0)
    warnings = train_here(rundir).status.warnings
    assert len(warnings) == 1
    assert rungs(rundir) == {
        "checkpointing": 0.0,
        "optimizer": "",
        "pieces": 2,
        "base": "",
        "streamed": False,
        "sharded": False,
        "compiled": None,
    }


def test_other_errors_are_no_lack_of_memory(tmp_path, monkeypatch, tiny_sd15, pictures):
    def predict(*_):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(StableDiffusion15, "predict", predict)
    rundir = write_run(tmp_path / "run", tiny_sd15, pictures, TRAIN | {"train.dry_run": "on"})
    with pytest.raises(RuntimeError, match="shapes differ"):
        run(Reporter(rundir), StopFlag())


def test_pieces_cover_the_batch():
    for count in range(1, 9):
        for pieces in range(1, 10):
            rows = [index for part in cuts(count, pieces) for index in range(count)[part]]
            assert rows == list(range(count))
            assert len(cuts(count, pieces)) == min(count, pieces)


def batch(count: int) -> Batch:
    return Batch(
        latents=torch.randn(count, 4, 2, 2),
        cond={"hidden": torch.randn(count, 3, 5)},
        geometry=[Geometry((n, n), (0, 0), (8, 8)) for n in range(count)],
        weight=torch.rand(count),
        names=[str(n) for n in range(count)],
        captions=[""] * count,
        epoch=3,
        index=5,
    )


def test_rows_of_a_batch():
    whole = batch(5)
    part = whole.rows(slice(2, 4))
    assert (part.names, len(part.captions), part.epoch, part.index) == (["2", "3"], 2, 3, 5)
    assert torch.equal(part.latents, whole.latents[2:4])
    assert torch.equal(part.cond["hidden"], whole.cond["hidden"][2:4])
    assert torch.equal(part.weight, whole.weight[2:4])
    assert [g.original for g in part.geometry] == [(2, 2), (3, 3)]
    assert whole.rows(slice(0, 5)) is whole


def test_the_largest_batch_has_the_most_pixels():
    class Item:
        def __init__(self, side):
            self.geometry = Geometry((side, side), (0, 0), (side, side))

    class Slot:
        def __init__(self, item):
            self.item = item

    class Source:
        items = (Item(8), Item(16), Item(64))

        def plan(self, epoch):
            return [(Slot(0),) * 4, (Slot(1),) * 20, (Slot(2),)]

        def load(self, slots, epoch, index):
            return index

    assert largest_batch(Source()) == 1


def watched(*seconds: float, on_gpu: bool = True) -> list[str]:
    watch = SlowWatch(on_gpu=on_gpu)
    return [said for each in seconds if (said := watch.see(each))]


def test_steps_that_become_three_times_as_slow_are_told_once():
    start = [5.0] * SETTLED + [0.1] * TYPICAL
    assert watched(*start, *[0.11] * 50) == []
    assert watched(*start, *[0.9, 0.9, 0.1] * 20) == []  # buckets of other sizes
    (said,) = watched(*start, *[0.4] * (SLOW_STEPS + 30))
    assert said.startswith("steps take 0.4 s, 4.0 times as long as at the start (0.1 s): GPU memory")
    (said,) = watched(*start, *[0.4] * (SLOW_STEPS + 30), on_gpu=False)
    assert said.endswith("(0.1 s): another program is busy, or memory is short; close what you can spare")
    assert watched(*start, *[0.4] * (SLOW_STEPS - 1)) == []


def test_without_a_gpu_a_large_base_keeps_no_activations(tmp_path, tiny_sd15, pictures, monkeypatch):
    """Nothing is tried there, so it has to be so at once; and a resumed run goes on like that."""
    changes = {"train.max_steps": 2, "checkpoints.every": 1}
    small = write_run(tmp_path / "small", tiny_sd15, pictures, changes)
    train_here(small)
    assert not small.file("memory.json").exists()
    monkeypatch.setattr("trainers.ladder.parameters", lambda *_: 3 * 10**9)
    large = write_run(tmp_path / "large", tiny_sd15, pictures, changes)
    assert train_here(large).status.warnings == []
    assert json.loads(large.file("memory.json").read_text())["checkpointing"] == 1.0
    assert equal(small, large)
