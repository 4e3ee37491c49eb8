"""The probe's figures: what they are made of, that held-out pictures are never trained on, and resuming."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from registry.hashing import hash_adapter
from tests.support.runs import draw_pictures, environment, recipe, resume, train, write_run
from trainers.data import BatchSource
from trainers.held_out import held_out
from trainers.loop import error
from trainers.metrics import Reporter
from trainers.objectives import DDPM
from trainers.plan import Geometry, Item, Slot, draw_seed
from trainers.probe import EVERYDAY, Figures, held_rows, prior_captions
from trainers.readback import ReadBack
from trainers.rundir import ManifestItem, RunDir, checkpoint_step
from trainers.session import Session, open_session
from trainers.signals import StopFlag

COUNT = 2
CHANGES = {
    "train.max_steps": 4, "checkpoints.every": 1, "checkpoints.keep": 4, "data.trigger": "zork",
    "checkpoints.held_out": COUNT, "train.ema_decay": 0.9,
}  # fmt: skip


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> list[ManifestItem]:
    """Six pictures, those that get held out last."""
    items = draw_pictures(tmp_path_factory.mktemp("probed"), count=6)
    away = held_out(recipe(CHANGES), {item.pixel_hash: item.caption for item in items})
    assert len(away) == COUNT
    return sorted(items, key=lambda item: item.pixel_hash in away)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_sd15, shown) -> RunDir:
    """A run of four steps with two of six pictures held out; do not change it."""
    rundir = write_run(tmp_path_factory.mktemp("runs") / "finished", tiny_sd15, shown, CHANGES)
    assert train(rundir) == 0, rundir.file("log.txt").read_text()
    return rundir


@pytest.fixture
def opened(monkeypatch):
    """Opens a run's session in this process."""
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    return lambda rundir: open_session(rundir, Reporter(rundir), StopFlag())


def figures(rundir: RunDir) -> dict[int, tuple[float, float, float]]:
    """By step, as metrics.jsonl has them."""
    keys = ("probe_loss", "probe_held_out", "probe_prior")
    return {line["step"]: tuple(line[key] for key in keys) for line in rundir.read_metrics()}


def test_three_figures_are_kept_and_the_best_is_that_of_held_out_pictures(finished, shown):
    found = figures(finished)
    assert list(found) == [1, 2, 3, 4]
    assert all(value > 0 for line in found.values() for value in line)
    best = min(found, key=lambda step: found[step][1])
    status = finished.read_status()
    assert status.best_step == best
    assert sorted(status.held_out) == sorted(item.name for item in shown[-COUNT:])
    assert "held out, to judge checkpoints by: picture-" in finished.file("log.txt").read_text()
    for folder in finished.checkpoints():
        numbers = json.loads(folder.joinpath("state.json").read_text())
        noted = (numbers["probe_loss"], numbers["probe_held_out"], numbers["probe_prior"])
        assert noted == found[checkpoint_step(folder)]


def test_held_out_pictures_are_never_trained_on(finished, shown, tiny_sd15, tmp_path):
    """A run that was never given them learns the same, bit for bit, and its first figure is the same."""
    without = write_run(
        tmp_path / "without", tiny_sd15, shown[:-COUNT], CHANGES | {"checkpoints.held_out": None}
    )
    assert train(without) == 0, without.file("log.txt").read_text()
    assert hash_adapter(without.adapter).tensor_sha256 == hash_adapter(finished.adapter).tensor_sha256
    lines = without.read_metrics()
    assert [line["loss"] for line in lines] == [line["loss"] for line in finished.read_metrics()]
    assert [line["probe_loss"] for line in lines] == [found[0] for found in figures(finished).values()]
    assert not any("probe_held_out" in line for line in lines)
    status = without.read_status()
    assert status.held_out == []
    assert status.best_step == min(lines, key=lambda line: line["probe_loss"])["step"]


def test_a_resumed_run_has_the_same_figures(finished, tmp_path):
    again = RunDir(shutil.copytree(finished.path, tmp_path / "again"))
    (tmp_path / "cache").symlink_to(finished.path.parent / "cache")
    for folder in again.checkpoints()[2:]:
        shutil.rmtree(folder)
    again.adapter.unlink()
    resume(again)
    assert train(again) == 0, again.file("log.txt").read_text()
    assert figures(again) == figures(finished)
    assert hash_adapter(again.adapter).tensor_sha256 == hash_adapter(finished.adapter).tensor_sha256
    assert again.read_status().best_step == finished.read_status().best_step


def test_the_figures_are_what_they_say(finished, opened, tmp_path):
    """Calculated once more beside the probe, at the weights of the last checkpoint."""
    again = RunDir(shutil.copytree(finished.path, tmp_path / "again"))
    (tmp_path / "cache").symlink_to(finished.path.parent / "cache")
    resume(again)
    session: Session = opened(again)
    probe = session.milestones.probe
    found = probe()
    assert (found.train, found.held_out, found.prior) == figures(finished)[4]
    assert probe() == found
    assert found.judged == found.held_out
    assert Figures(0.25, None, 0.5).named() == {"probe_loss": 0.25, "probe_prior": 0.5}
    assert probe.has_effect()

    family, objective, source = session.family, session.objective, session.source
    names = ["a red disc", "a green disc", "a blue disc", "a orange disc", "a purple disc", "a teal disc"]
    learning = session.learning
    with torch.no_grad(), learning.ema.applied(), learning.trainables.evaluating():
        batch = source.load([Slot(position, 0) for position in range(4)], 0, 0)
        order = [names[int(name[8])] for name in batch.names]
        generator = torch.Generator().manual_seed(draw_seed(session.setting.recipe.train.seed, "probe"))
        noise = objective.sample_noise(batch.latents.shape, generator)
        t = objective.probe_t(batch.latents.shape)
        told = source.conditioning([f"zork, {caption}" for caption in order])
        assert float(error(family, objective, replace(batch, cond=told), noise, t)) == found.train
        x_t = objective.corrupt(batch.latents, noise, t)
        plain = family.conditioning(source.conditioning(order))
        adapted = family.predict(x_t, t, plain, batch.geometry)
        with learning.trainables.disabled():
            base = family.predict(x_t, t, plain, batch.geometry)
        assert float((adapted - base).square().mean()) == pytest.approx(found.prior, rel=1e-6)
    session.close()


def items(*captions: str) -> list[Item]:
    places = Geometry((40, 40), (0, 0), (32, 32))
    sources = [
        ManifestItem(image=f"{n}.png", pixel_hash=f"p{n}", width=40, height=40, caption=caption)
        for n, caption in enumerate(captions)
    ]
    return [Item(n, source, places) for n, source in enumerate(sources)]


def test_the_base_is_asked_for_what_is_not_taught():
    some = items("a cat", "a dog")
    assert prior_captions(recipe({"data.trigger": "zork"}), some) == ["a cat", "a dog"]
    assert prior_captions(recipe(), some) == list(EVERYDAY[:2])  # no word tells what is learned from the rest
    named = {"data.trigger": "zork", "preservation.class_prompt": "a pet"}
    assert prior_captions(recipe(named), some) == ["a pet", "a pet"]
    assert prior_captions(recipe({"data.trigger": "zork"}), items("", "zork")) == ["", ""]
    assert prior_captions(recipe({"checkpoints.keep_best": False}), some) == []
    assert prior_captions(recipe({"adapter.method": "full"}), some) == []
    words = {"tokens.words": ("zork",), "tokens.only": True}
    assert prior_captions(recipe(words), some) == []


def test_a_point_of_the_probe_is_always_tracked(tmp_path):
    tracked: list[dict[str, float]] = []
    readback = ReadBack(Reporter(RunDir(tmp_path)), torch.device("cpu"), track=tracked.append, scaled=False)
    for step in (1, 2, 3):
        readback.push(step, torch.tensor(0.5), 1.0, torch.tensor(0.0), [], {})
    readback.drain({"probe_held_out": 0.25})
    assert [line["step"] for line in tracked] == [1, 3]
    assert tracked[-1]["probe_held_out"] == 0.25


class Shapes:
    """Latents of zeros, in the shape of each bucket."""

    def get(self, item: Item, *, flip: bool) -> tuple[torch.Tensor, torch.Tensor]:
        height, width = (side // 8 for side in item.geometry.target)
        return torch.zeros(4, height, width), torch.zeros(4, height, width)


def test_held_out_pictures_of_several_shapes_and_sizes_count_alike():
    """Each as often, at the size nearest to the others', and together at timesteps of the whole range."""
    square, wide, large = (32, 32), (32, 64), (64, 64)
    some = items(*"abcde")
    targets = [square, square, square, wide, wide]
    held = [
        replace(i, geometry=Geometry((64, 64), (0, 0), target))
        for i, target in zip(some, targets, strict=True)
    ]
    held += [
        replace(held[0], index=9, geometry=Geometry((64, 64), (0, 0), large)),  # the first, at another size
    ]
    chosen, cpu = recipe(), torch.device("cpu")
    source = BatchSource(held, Shapes(), lambda told: {"n": torch.zeros(len(told))}, chosen.data, 0, 1)
    setting = SimpleNamespace(recipe=chosen, family=SimpleNamespace(device=cpu))
    objective = DDPM(torch.linspace(0.999, 0.01, 1000))
    asked = held_rows(setting, objective, source, held, square)
    assert [tuple(one.batch.latents.shape) for one in asked] == [(6, 4, 4, 4), (4, 4, 4, 8)]
    assert [one.noise.shape for one in asked] == [one.batch.latents.shape for one in asked]
    shown = Counter(name for one in asked for name in one.batch.names)
    assert shown == {f"{n}.png": 2 for n in range(5)}
    together = torch.cat([one.t for one in asked]).sort().values
    assert torch.equal(together, objective.probe_t(torch.Size((10, 4, 4, 4))))
    many = held_rows(setting, objective, source, items(*map(str, range(20))), square)
    assert [len(one.t) for one in many] == [8, 8, 4]  # no more at once than otherwise
    assert held_rows(setting, objective, source, [], square) == []
