"""Prior preservation with pictures: drawing and keeping them, and how they mix with those that teach."""

import os
import shutil
import signal
import time
from collections import Counter
from dataclasses import replace

import pytest
from accelerate.state import AcceleratorState
from PIL import Image

from tests.support.runs import draw_pictures, recipe, resume, start_trainer, train, write_run
from trainers.captions import captions_needed, wording
from trainers.class_pictures import class_key, class_pictures
from trainers.families.base import Family
from trainers.metrics import Reporter
from trainers.plan import assign_buckets, batch_plan
from trainers.priors import REGULARISATION, showings
from trainers.recipe import DataSection
from trainers.rundir import ManifestItem
from trainers.setup import Setting
from trainers.signals import StopFlag
from trainers.stored import StoredLayer

CLASSES = {
    "preservation.mode": "class_pictures", "preservation.class_prompt": "a disc", "preservation.count": 4,
    "preservation.steps": 2, "data.trigger": "zork",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _new_accelerator():
    """Accelerate keeps its precision for the whole process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def open_setting(rundir, changes, family="sd15"):
    AcceleratorState._reset_state(reset_partial_state=True)
    return Setting(recipe(CLASSES | changes, family), rundir.read_env(), rundir, Reporter(rundir), StopFlag())


def drawn(folder):
    return sorted((folder / "cache" / "class").rglob("*.png"))


def test_class_pictures_are_drawn_once_counted_and_shared(tmp_path, tiny_sd15, pictures, monkeypatch):
    first = write_run(tmp_path / "first", tiny_sd15, pictures, CLASSES)
    items = class_pictures(open_setting(first, {}))
    files = drawn(tmp_path)
    assert [file.name for file in files] == ["000.png", "001.png", "002.png", "003.png"]
    assert len({item.pixel_hash for item in items}) == 4
    facts = {(item.caption, item.role, item.weight, item.width, item.height) for item in items}
    assert facts == {("a disc", "class", 1.0, 32, 32)}
    before = [file.read_bytes() for file in files]

    files[1].unlink()
    files[2].write_bytes(files[2].read_bytes()[:60])  # torn
    Image.new("RGB", (8, 8)).save(files[3])  # foreign
    more = class_pictures(open_setting(first, {"preservation.count": 5}))
    assert [file.read_bytes() for file in drawn(tmp_path)][:4] == before
    assert [item.pixel_hash for item in more][:4] == [item.pixel_hash for item in items]

    monkeypatch.setattr("trainers.class_pictures.sample", None)  # nothing is drawn any more
    second = write_run(tmp_path / "second", tiny_sd15, pictures, CLASSES)
    assert class_pictures(open_setting(second, {})) == items
    assert class_pictures(open_setting(second, {"preservation.mode": "none"})) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("preservation.class_prompt", "a ring"), ("preservation.steps", 3), ("preservation.cfg", 2.0),
        ("preservation.scheduler", "Euler"), ("train.resolution", 64),
    ],
)  # fmt: skip
def test_what_changes_a_picture_changes_its_place(key, value, tmp_path, tiny_sd15, pictures):
    rundir = write_run(tmp_path / "run", tiny_sd15, pictures)
    usual, other = open_setting(rundir, {}), open_setting(rundir, {key: value})
    assert class_key(usual, 32) != class_key(other, 64 if key == "train.resolution" else 32)
    more = open_setting(rundir, {"preservation.count": 9, "preservation.weight": 0.3, "data.trigger": "x"})
    assert class_key(usual, 32) == class_key(more, 32)


@pytest.mark.parametrize("family", ["sd15", "flux1"])
def test_a_base_that_is_rounded_for_training_draws_so_too(family, tmp_path, request, pictures, monkeypatch):
    seen = []

    def sample(family, how, cond, negative, noise, generator):
        seen.append(
            {layer.precision for layer in family.denoiser.modules() if isinstance(layer, StoredLayer)}
        )
        return noise

    loaded = []
    real = Family.free
    monkeypatch.setattr("trainers.class_pictures.sample", sample)
    monkeypatch.setattr(
        Family, "free", lambda self, *names: (loaded.append(rounded_in(self, names)), real(self, *names))
    )
    rundir = write_run(tmp_path / "run", request.getfixturevalue(f"tiny_{family}"), pictures, family=family)
    settings = [
        open_setting(rundir, {"preservation.count": 1, "train.base_weights": kept}, family)
        for kept in ("auto", "whole", "int8", "fp8", "nf4")
    ]
    auto, whole, int8, fp8, nf4 = (class_key(setting, 32) for setting in settings)
    assert auto == whole
    assert len({whole, int8, fp8, nf4}) == 4
    class_pictures(settings[2])
    assert seen == [{"int8"}]
    assert ("text_encoder_2" in loaded[0]) == (family == "flux1")
    together = {"preservation.count": 1, "train.base_sharding": "on", "train.processes": 2}
    shared = open_setting(rundir, together, family)
    assert class_key(shared, 32) == whole
    class_pictures(shared)
    assert seen[1:] == [{"whole"}]  # streamed: a process that draws alone cannot ask the others
    shutil.rmtree(shared.cache / "class")
    class_pictures(open_setting(rundir, together | {"train.base_streaming": "off"}, family))
    assert seen[2:] == [set()]  # neither streamed nor rounded: there is no GPU that it would fill


def rounded_in(family, names):
    """Which of these components are loaded and rounded."""
    parts = {name: family.part(name) for name in names if family.holds(name)}
    return {name for name, part in parts.items() if any(isinstance(m, StoredLayer) for m in part.modules())}


def test_guidance_is_as_that_of_previews_and_sdxl_gets_zeros_for_no_prompt(
    tmp_path, tiny_sdxl, pictures, monkeypatch
):
    seen = []

    def sample(family, how, cond, negative, noise, generator):
        seen.append((how.cfg, negative))
        return noise

    monkeypatch.setattr("trainers.class_pictures.sample", sample)
    rundir = write_run(tmp_path / "run", tiny_sdxl, pictures, family="sdxl")
    class_pictures(open_setting(rundir, {"preservation.count": 1, "preview.cfg": 4.5}, "sdxl"))
    assert seen[0][0] == 4.5
    assert not any(value.any() for value in seen[0][1].values())


def test_a_run_killed_while_drawing_goes_on_where_it_was(tmp_path, tiny_sd15, pictures):
    changes = CLASSES | {"preservation.count": 12, "preservation.steps": 8}
    rundir = write_run(tmp_path / "run", tiny_sd15, pictures, changes)
    trainer = start_trainer(rundir)
    wait_for_pictures(trainer, tmp_path, 3)
    os.killpg(trainer.pid, signal.SIGKILL)
    trainer.wait()
    kept = {file: file.stat().st_mtime_ns for file in drawn(tmp_path)}
    assert 3 <= len(kept) < 12

    trainer = start_trainer(rundir)
    wait_for_pictures(trainer, tmp_path, len(kept) + 2)
    os.killpg(trainer.pid, signal.SIGTERM)  # heard between two pictures
    assert trainer.wait() == 0
    status = rundir.read_status()
    assert status.state == "stopped"
    assert len(drawn(tmp_path)) < 12
    assert all(file.stat().st_mtime_ns == at for file, at in kept.items())

    resume(rundir)
    assert train(rundir) == 0, rundir.file("log.txt").read_text()
    assert len(drawn(tmp_path)) == 12
    assert rundir.read_status().state == "finished"


def wait_for_pictures(trainer, folder, count):
    while len(drawn(folder)) < count:
        assert trainer.poll() is None
        time.sleep(0.01)  # looking costs as much as drawing


def source(name, size, **extra):
    return ManifestItem(image=name, pixel_hash=name, width=size[0], height=size[1], caption=name, **extra)


def mixed():
    instances = [source(f"i{n}", (64, 64)) for n in range(5)]
    square = [source(f"s{n}", (64, 64), role="class", weight=0.5) for n in range(12)]
    wide = [source(f"w{n}", (96, 48), role=REGULARISATION, weight=0.5) for n in range(4)]
    data = DataSection(repeats=2)
    return assign_buckets([*instances, *square, *wide], resolution=64, step=8, data=data)[0]


def test_priors_take_turns_one_for_each_instance():
    items = mixed()
    seen = Counter()
    for epoch in range(8):
        shown = [items[position].source for position, _ in showings(items, epoch)]
        kinds = Counter(source.name or source.role for source in shown)
        assert (kinds[""], kinds["class"], kinds[REGULARISATION]) == (10, 8, 2)
        assert len(shown) == len(set(showings(items, epoch)))
        seen.update(source.image for source in shown)
    counts = {name: count for name, count in seen.items() if not name.startswith("i")}
    assert len(counts) == 16
    assert max(counts.values()) - min(counts.values()) <= 2
    assert all(seen[f"i{n}"] == 16 for n in range(5))


def test_order_is_a_function_of_seed_and_epoch_and_epochs_have_equally_many_batches():
    items = mixed()
    plans = [batch_plan(items, 3, epoch, 4) for epoch in range(6)]
    assert plans == [batch_plan(items, 3, epoch, 4) for epoch in range(6)]
    assert len({len(plan) for plan in plans}) == 1
    assert plans[0] != plans[1]


def test_without_priors_the_plan_is_as_it_was():
    items = [item for item in mixed() if not item.source.role]
    assert list(showings(items, 3)) == [(position, copy) for position in range(5) for copy in range(2)]


def test_priors_never_get_the_trigger_word():
    items = mixed()
    data = DataSection(trigger="zork", class_word="ring")
    captions = captions_needed(items, data, 0)
    assert "zork ring, i0" in captions
    assert {"s0", "w0"} <= set(captions)
    marked = replace(items[-1].source, caption="a [trigger] disc")
    assert wording(marked, data, 0).versions() == ("a disc",)


def test_a_run_with_class_and_regularisation_pictures(tmp_path, tiny_sd15, pictures):
    priors = draw_pictures(tmp_path / "priors", count=3, size=48)
    priors = [
        replace(item, role=REGULARISATION, weight=0.25, name=f"prior {n}") for n, item in enumerate(priors)
    ]
    changes = CLASSES | {"train.max_steps": 8, "train.batch_size": 1, "preview.every": 8}
    rundir = write_run(tmp_path / "run", tiny_sd15, [*pictures, *priors], changes)
    assert train(rundir) == 0, rundir.file("log.txt").read_text()
    status = rundir.read_status()
    assert status.warnings == []
    assert all(line["prompt"].startswith("zork, a ") for line in rundir.previews())
