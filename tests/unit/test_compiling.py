"""Compiled blocks: the same run but for rounding, decided once, kept for the run, never a reason to fail."""

import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.utils import counters

from tests.support.runs import recipe, resume, write_run
from tests.support.trained_here import equal, losses, set_here, tensors, train_here
from tests.unit.test_base_weights import AfterOne
from trainers import compiling
from trainers.compiling import Fault, Pace, compile_blocks, decide, excluded, key_of, settle_compiling
from trainers.dry_run import Rehearsal
from trainers.families.base import BaseFiles
from trainers.families.sd import StableDiffusion15
from trainers.kernels import repeated, why_not
from trainers.ladder import Rungs
from trainers.metrics import Reporter
from trainers.run import run
from trainers.signals import StopFlag

TRAIN = {"train.max_steps": 4, "checkpoints.every": 1, "optimizer.lr": 1e-3}
ON = TRAIN | {"train.compile": "on"}


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    """A backend that traces as the real one does and writes no C++, which takes a minute."""
    set_here(monkeypatch)
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def kept(rundir) -> dict:
    return json.loads(rundir.file("memory.json").read_text())


@pytest.fixture(scope="module")
def plain(tmp_path_factory, tiny_sd15, pictures):
    """The same run uncompiled."""
    rundir = write_run(tmp_path_factory.mktemp("plain"), tiny_sd15, pictures, TRAIN)
    with pytest.MonkeyPatch.context() as patch:
        set_here(patch)
        train_here(rundir)
    return rundir


def test_a_compiled_run_is_the_plain_one_and_goes_on_as_it_began(plain, tmp_path, tiny_sd15, pictures):
    broken = write_run(tmp_path / "broken", tiny_sd15, pictures, ON)
    reporter = Reporter(broken)
    assert run(reporter, AfterOne(broken)) == 0
    assert reporter.status.warnings == []
    assert 0 < len(broken.read_metrics()) < 4
    assert kept(broken) == asdict(Rungs(compiled=True))
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    resume(broken)
    assert train_here(broken).status.warnings == []
    assert losses(broken) == pytest.approx(losses(plain), rel=1e-4)
    found, expected = tensors(broken), tensors(plain)
    assert all(torch.allclose(found[key], expected[key], atol=1e-4) for key in expected)
    whole = write_run(tmp_path / "whole", tiny_sd15, pictures, ON)
    train_here(whole)
    assert equal(broken, whole)


def test_on_a_cpu_it_has_to_be_asked_for(plain):
    assert not plain.file("memory.json").exists()
    assert not (plain.path.parent / "cache" / compiling.PLACE).exists()


@pytest.mark.parametrize(
    "more",
    [
        {"train.gradient_checkpointing": True, "train.checkpointed_blocks": 0.5},
        {"adapter.method": "dora", "adapter.targets": r".*attn2\.to_q"},
        {"preservation.mode": "base_prediction", "data.trigger": "zork", "preview.every": 2},
    ],
    ids=["checkpointed", "dora", "preserved"],
)
def test_together_with_other_choices(more, tmp_path, tiny_sd15, pictures):
    runs = [
        write_run(tmp_path / name, tiny_sd15, pictures, c | more) for name, c in (("a", TRAIN), ("b", ON))
    ]
    for rundir in runs:
        assert train_here(rundir).status.warnings == []
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), rel=1e-3)
    assert counters["stats"]["unique_graphs"] > 0
    assert bool(counters["graph_break"]) == ("adapter.method" in more)  # PEFT's DoRA falls into pieces


def test_blocks_alike_are_compiled_once(tiny_sd15):
    """Two widths, two blocks each; with packed adapters and without gradients nothing comes to it."""
    from tests.unit.test_packed import Model

    model = Model(tiny_sd15, torch.bfloat16, packed=True)
    assert compile_blocks(model.family.denoiser) == len(repeated(model.family.denoiser)) == 4
    with torch.no_grad():
        prediction = model.family.predict(torch.zeros(1, 4, 8, 8), torch.tensor([9]), NOTHING_SAID, [])
    assert prediction.isfinite().all()
    assert counters["stats"]["unique_graphs"] == 0
    _, found = model.step()
    assert counters["stats"]["unique_graphs"] == 2
    _, expected = Model(tiny_sd15, torch.bfloat16, packed=True).step()
    assert torch.cosine_similarity(found, expected, dim=0) > 0.999


NOTHING_SAID = {"hidden": torch.zeros(1, 77, 32, dtype=torch.bfloat16)}


def no_compiler(*_args, **_options):
    raise RuntimeError("No working compiler found: (None, 'g++')\nmore")


def no_block(*_args, **_options):
    raise ValueError("this block is too strange")


def test_where_nothing_compiles_the_run_goes_on_plain(plain, tmp_path, tiny_sd15, pictures, monkeypatch):
    monkeypatch.setattr(compiling, "BACKEND", "inductor")
    why_not.cache_clear()
    monkeypatch.setattr(torch, "compile", no_compiler)
    rundir = write_run(tmp_path / "run", tiny_sd15, pictures, ON)
    (said,) = train_here(rundir).status.warnings
    why_not.cache_clear()
    assert said == (
        "blocks are not compiled: torch cannot compile on this machine (No working compiler found: (None, "
        "'g++'))"
    )
    assert equal(rundir, plain)
    assert kept(rundir)["compiled"] is False


def test_a_block_that_does_not_compile_is_none_either(plain, tmp_path, tiny_sd15, pictures, monkeypatch):
    monkeypatch.setattr(compiling, "BACKEND", no_block)
    rundir = write_run(tmp_path / "run", tiny_sd15, pictures, ON)
    reporter = Reporter(rundir)
    assert run(reporter, AfterOne(rundir)) == 0
    (said,) = reporter.status.warnings
    assert said.startswith("blocks are not compiled: torch cannot compile its blocks (backend=")
    assert kept(rundir)["compiled"] is False
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    counters.clear()
    resume(rundir)
    assert train_here(rundir).status.warnings == []  # said once; and it goes on as it began
    assert counters["stats"]["unique_graphs"] == 0
    assert equal(rundir, plain)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"train.base_weights": "int8"}, "the base's weights are rounded"),
        ({"train.base_streaming": "on"}, "the base's weights come from the main memory, layer by layer"),
    ],
)
def test_rounded_and_streamed_bases_are_not_compiled(more, why, tmp_path, tiny_sd15, pictures):
    rundir = write_run(tmp_path / "run", tiny_sd15, pictures, ON | more | {"train.max_steps": 2})
    assert train_here(rundir).status.warnings == [f"train.compile has no effect: {why}"]
    assert counters["stats"]["unique_graphs"] == 0


class Trial:
    """Passes that take what they are said to take."""

    def __init__(self, *times: float, fault: Fault | None = None):
        self.times, self.fault, self.calls = list(times), fault, []
        self.setting = SimpleNamespace(writes=True)

    def seconds(self) -> float:
        self.calls.append("timed")
        return self.times.pop(0)

    def compile(self) -> Fault | None:
        self.calls.append("compiled")
        return self.fault

    def undo(self) -> None:
        self.calls.append("undone")

    def shared(self, _seconds: float) -> float:
        return 30.0  # of compiling


def test_what_pays_is_tried_once_and_remembered(tmp_path):
    place, trial = tmp_path / "compiled.json", Trial(0.5, 0.3)
    compiled, why = decide(trial, 2000, 3, place, "here")
    assert (compiled, trial.calls) == (True, ["timed", "compiled", "timed"])
    assert why == "a pass takes 300 ms compiled and 500 ms as it is, compiling 30 s"
    assert json.loads(place.read_text()) == {"here": asdict(Pace(0.5, 0.3, 30.0))}
    again = Trial()
    assert decide(again, 2000, 3, place, "here") == (True, f"seen before: {why}")
    assert again.calls == ["compiled"]
    few = Trial()
    assert decide(few, 100, 3, place, "here") == (False, f"seen before: {why}")
    assert few.calls == []
    elsewhere = Trial(0.5, 0.55)
    assert decide(elsewhere, 2000, 1, place, "there")[0] is False
    assert elsewhere.calls == ["timed", "compiled", "timed", "undone"]
    assert set(json.loads(place.read_text())) == {"here", "there"}
    place.write_text("{")
    assert decide(Trial(0.5, 0.3), 2000, 3, place, "here") == (True, why)


def test_a_short_run_tries_nothing(tmp_path):
    place, trial = tmp_path / "compiled.json", Trial(0.5)
    compiled, why = decide(trial, 100, 1, place, "here")
    assert (compiled, trial.calls) == (False, ["timed"])
    assert why == "100 passes of 500 ms are too few to make up for compiling"
    assert decide(Trial(), 20, 1, place, "here") == (False, "20 passes are too few to make up for a trial")
    assert not place.exists()


def test_what_cannot_be_compiled_is_not_tried_again(tmp_path):
    place, fault = tmp_path / "compiled.json", "torch cannot compile its blocks (a loop)"
    assert decide(Trial(0.5, fault=Fault("no compiler")), 2000, 1, place, "here") == (False, "no compiler")
    now = Trial(0.5, fault=Fault(fault, lasting=True))  # there is one
    assert decide(now, 2000, 1, place, "here") == (False, fault)
    again = Trial()
    assert decide(again, 2000, 1, place, "here") == (False, f"seen before: {fault}")
    assert again.calls == []


def test_left_open_on_a_gpu_it_is_decided_and_kept(plain, tmp_path, tiny_sd15, pictures, monkeypatch):
    """The CPU stands in for it: passes are really timed, and compiled ones are slower here."""
    monkeypatch.setattr(compiling, "on_gpu", lambda _: True)
    monkeypatch.setattr(compiling, "USUAL", 0.0)
    monkeypatch.setattr(compiling, "MOST_GAIN", 1.0)
    monkeypatch.setattr(compiling, "TIMED", 1)
    monkeypatch.setattr(compiling, "SETTLING", 1)
    monkeypatch.setattr(Pace, "pays", lambda *_: False)
    rundir = write_run(tmp_path / "run", tiny_sd15, pictures, TRAIN)
    assert train_here(rundir).status.warnings == []
    assert kept(rundir)["compiled"] is False
    assert equal(rundir, plain)  # the trial left no trace
    (pace,) = json.loads((tmp_path / "cache" / compiling.PLACE).read_text()).values()
    assert pace["plain"] > 0
    assert pace["compiled"] > 0
    assert pace["compiling"] > 0
    monkeypatch.setattr(Pace, "pays", lambda *_: True)
    other = write_run(tmp_path / "other", tiny_sd15, pictures, TRAIN)
    assert run(Reporter(other), AfterOne(other)) == 0
    assert kept(other)["compiled"] is True
    monkeypatch.setattr(compiling, "on_gpu", lambda _: False)
    resume(other)
    assert train_here(other).status.warnings == [
        "blocks are not compiled any more: numbers round otherwise than before"
    ]
    assert losses(other) == pytest.approx(losses(plain), rel=1e-4)


def test_a_pass_of_a_batch_in_pieces_is_counted_once(tiny_sd15, monkeypatch):
    """`Trial.seconds` takes the time of all pieces together."""
    asked = {}

    def decided(_trial, passes, _shapes, _place, key):
        asked[key] = passes
        return False, ""

    monkeypatch.setattr(compiling, "on_gpu", lambda _: True)
    monkeypatch.setattr(compiling, "Trial", lambda *_: None)
    monkeypatch.setattr(compiling, "decide", decided)
    changes = TRAIN | {"train.max_steps": 50, "train.accumulate": 2, "train.batch_size": 4}
    setting = SimpleNamespace(
        recipe=recipe(changes),
        family=StableDiffusion15(BaseFiles(str(tiny_sd15)), dtype=torch.float32, device=torch.device("cpu")),
        stop=StopFlag(),
        reporter=SimpleNamespace(phase=lambda _: None),
        cache=tiny_sd15,
        writes=False,
    )
    source = SimpleNamespace(items=[])
    for pieces in (1, 4):
        settle_compiling(Rehearsal(setting, None, source, None, Rungs(pieces=pieces)), start=0)
    assert list(asked.values()) == [100, 100]


def test_bases_of_a_family_that_differ_in_size_have_paces_of_their_own(tiny_sd15):
    def key(denoiser, changes=TRAIN):
        family = SimpleNamespace(denoiser=denoiser, device=torch.device("cpu"), dtype=torch.float32)
        return key_of(SimpleNamespace(recipe=recipe(changes), family=family), Rungs())

    small, large = torch.nn.Linear(4, 4), torch.nn.Linear(8, 8)
    assert key(small) == key(torch.nn.Linear(4, 4))
    kept = TRAIN | {"preservation.mode": "base_prediction"}  # more rows in each pass
    assert len({key(small), key(large), key(small, kept)}) == 3


def test_what_is_excluded_by_the_ladder_is_so_too(tiny_sd15):
    setting = SimpleNamespace(recipe=recipe(), family=SimpleNamespace(denoiser=torch.nn.Linear(1, 1)))
    assert excluded(setting, Rungs()) == "this base has no repeated blocks that torch knows"
    assert excluded(setting, Rungs(base="nf4")) == "the base's weights are rounded"
