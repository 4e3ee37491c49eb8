"""Video, sound and 3D through the engine: toys of every kind, built from the real classes."""

import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from registry.errors import StudioError
from registry.records import Base, Job, JobKind, JobState, Sample
from studio.bases import add_base
from studio.cli import run
from studio.sampling.again import request_of
from studio.sampling.engine import Engine
from studio.sampling.media.kinds import KINDS
from studio.sampling.media.loading import LoadedPipeline, load_pipeline
from studio.sampling.media.making import NO_SURFACE, Making
from studio.sampling.media.requests import media_values
from studio.sampling.painting import Cancelled
from studio.sampling.progress import Progress
from studio.sampling.request import SampleRequest
from studio.sampling.server import _Writer  # pyright: ignore[reportPrivateUsage]
from studio.sampling.submit import submit
from studio.sampling.task import SampleTask
from studio.workspace import Workspace
from tests.support.bases import save_base
from tests.support.media import save_toy

pytestmark = pytest.mark.filterwarnings("ignore")  # of torchsde, weight_norm and GPT-2's toy vocabulary

THING = {"side": 32, "samples": 4, "grid": 12}
SMALL: dict[str, dict[str, Any]] = {
    "svd": {"width": 32, "height": 16, "settings": {"fps": 3, "motion": 40}},
    "animatediff": {"width": 32, "height": 32, "settings": {"frames": 3}},
    "audioldm2": {"settings": {"seconds": 0.05}},
    "stable-audio": {"negative": "noise", "settings": {"seconds": 0.01}},
    "shap-e": {"settings": THING},
    "shap-e-image": {"settings": THING},
    "sd15": {"width": 32, "height": 32, "settings": {"frames": 2}},  # with a motion adapter
}


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with a toy of each kind, a motion adapter and a base that it moves."""
    root = tmp_path_factory.mktemp("media")
    made = Workspace.open(root / "home")
    for name in (*KINDS, "motion"):
        add_base(made, name, str(save_toy(name, root / name)))
    add_base(made, "sd15", str(save_base("sd15", root / "sd15")))
    Image.effect_mandelbrot((70, 50), (-2, -1, 1, 1), 20).convert("RGB").save(root / "start.png")
    return made


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    threads = torch.get_num_threads()
    yield Engine(device="cpu")
    torch.set_num_threads(threads)


def small(ws: Workspace, name: str, **changes: Any) -> SampleRequest:
    """A request of two steps."""
    base = ws.catalog.get(Base, name)
    values: dict[str, Any] = {"steps": 2, "seed": 5, **SMALL[name]}
    if name == "sd15":
        values["motion"] = ws.catalog.get(Base, "motion").id
    takes = KINDS[name if name in KINDS else "animatediff"].takes
    values |= {"prompt": "a dog"} if "prompt" in takes else {}
    values |= {"image": str(ws.home.parent / "start.png")} if "image" in takes else {}
    return SampleRequest(**media_values(ws, base, values | changes))


def task_of(ws: Workspace, request: SampleRequest) -> SampleTask:
    return SampleTask.read(ws.sample_dir(submit(ws, request).id)).resolved(ws.resolve)


def made(engine: Engine, task: SampleTask, folder: Path, **options: Any) -> Path:
    """The main file of a task of one; nothing is to be said of it, but where there is no surface."""
    folder.mkdir(exist_ok=True)
    writer = _Writer(task, folder)
    drawn = engine.make(task, keep=writer.keep_made, **options)
    assert drawn.warnings == ([NO_SURFACE] if task.request.kind == "shap-e-image" else [])
    (name,) = writer.files
    return folder / name


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The main file of each kind, filled by the first test."""
    return {"folder": tmp_path_factory.mktemp("made")}


@pytest.mark.parametrize("name", SMALL)
def test_each_is_made_and_made_again_from_its_file(
    ws: Workspace, engine: Engine, files: dict[str, Path], tmp_path: Path, name: str
):
    said: list[Progress] = []
    request = small(ws, name)
    first = made(engine, task_of(ws, request), files["folder"] / name, say=said.append)
    files[name] = first
    assert [(news.phase, news.step) for news in said if news.step] == [
        ("drawing", 1), ("drawing", 2), ("decoding", 2)
    ]  # fmt: skip
    again = request_of(ws, first)
    assert again.kind == (name if name in KINDS else "animatediff")
    assert again.settings.items() >= request.settings.items()
    second = made(engine, task_of(ws, again), tmp_path / "two")
    names = sorted(path.name for path in first.parent.iterdir())
    assert names == sorted(path.name for path in second.parent.iterdir())
    assert ("000.ply" in names) is (name == "shap-e")  # the other one has no surface
    for file in names:
        # The request names its own copy of the picture; all else is the same.
        assert pixels(first.with_name(file)) == pixels(second.with_name(file))
        assert request_of(ws, first.with_name(file)) == again


def pixels(path: Path) -> bytes:
    """What a file holds beside its metadata."""
    if path.suffix == ".webp":
        with Image.open(path) as image:
            frames: list[bytes] = []
            for index in range(image.n_frames):
                image.seek(index)
                frames.append(image.tobytes())
            return b"".join(frames)
    if path.suffix == ".wav":
        with wave.open(str(path)) as sound:
            return sound.readframes(sound.getnframes())
    return path.read_bytes().partition(b"end_header\n")[2]


def test_a_video_has_the_frames_and_the_pace_that_were_asked_for(files: dict[str, Path]):
    with Image.open(files["svd"]) as image:
        assert (image.n_frames, image.size) == (3, (32, 16))  # pyright: ignore[reportAttributeAccessIssue]
        durations: list[int] = []
        for index in range(3):
            image.seek(index)
            image.load()
            durations.append(image.info["duration"])
    assert durations == [333, 334, 333]


def test_a_sound_has_the_length_and_the_rate_of_its_base(files: dict[str, Path]):
    for name, facts in (("audioldm2", (1, 2, 16000, 800)), ("stable-audio", (2, 2, 16000, 160))):
        with wave.open(str(files[name])) as sound:
            assert sound.getparams()[:4] == facts
            samples = np.frombuffer(sound.readframes(sound.getnframes()), "<i2")
        assert samples.std() > 0


def test_a_mesh_is_a_surface_with_colours(files: dict[str, Path]):
    mesh = files["shap-e"].with_suffix(".ply").read_bytes()
    header, _, body = mesh.partition(b"end_header\n")
    points, faces = (int(line.split()[-1]) for line in header.splitlines() if line.startswith(b"element"))
    assert len(body) == points * 15 + faces * 13
    places = np.frombuffer(body[: points * 15], [("place", "<f4", 3), ("colour", "u1", 3)])["place"]
    assert len(places) > 100
    assert np.abs(places).max() < 1.3
    corners = np.frombuffer(body[points * 15 :], [("count", "u1"), ("points", "<i4", 3)])
    assert set(corners["count"]) == {3}
    assert 0 <= corners["points"].min() <= corners["points"].max() < points


def shelf(engine: Engine) -> list[LoadedPipeline]:
    """What is loaded."""
    return list(engine._shelf.pipelines.values())  # pyright: ignore[reportPrivateUsage]


def test_gpt2_reads_on_from_what_it_remembers(ws: Workspace):
    """The published AudioLDM 2 has GPT-2 without its head, which the pipeline cannot use as it is."""
    pipe = load_pipeline(task_of(ws, small(ws, "audioldm2")), torch.device("cpu")).pipe
    start = torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = pipe.generate_language_model(start, max_new_tokens=4, attention_mask=torch.ones(1, 3).long())
        slow = start
        for _ in range(4):
            hidden = pipe.language_model.transformer(inputs_embeds=slow).last_hidden_state
            slow = torch.cat([slow, hidden[:, -1:]], dim=1)
    assert torch.allclose(ours, slow[:, 3:], atol=1e-5)


def test_each_number_is_what_it_is_alone(ws: Workspace, engine: Engine, tmp_path: Path):
    several = task_of(ws, small(ws, "stable-audio", count=2))
    writer = _Writer(several, tmp_path)
    engine.make(several, keep=writer.keep_made)
    assert writer.files == ["000.wav", "001.wav"]
    second = request_of(ws, tmp_path / "001.wav")
    assert (second.seed, second.count) == (6, 1)
    alone = made(engine, task_of(ws, second), tmp_path / "alone")
    assert pixels(alone) == pixels(tmp_path / "001.wav") != pixels(tmp_path / "000.wav")


@pytest.mark.parametrize("when", ["drawing", "decoding"])
def test_it_ends_within_a_step(ws: Workspace, engine: Engine, tmp_path: Path, when: str):
    task, said = task_of(ws, small(ws, "shap-e")), [Progress("")]
    with pytest.raises(Cancelled):
        made(engine, task, tmp_path, say=said.append, cancelled=lambda: said[-1].phase == when)
    assert (said[-1].phase, list(tmp_path.iterdir())) == (when, [])


def test_a_long_prompt_says_what_does_not_count(ws: Workspace, engine: Engine):
    task = task_of(ws, small(ws, "animatediff", prompt="z " * 100))
    drawn = engine.make(task, keep=lambda _index, _made: None)
    assert drawn.warnings == ["The tokenizer reads 77 tokens: 25 at the end do not count."]


def test_the_longest_unused_leaves_where_memory_is_short_and_nan_is_no_sound(ws: Workspace, tmp_path: Path):
    engine = Engine(device="cpu", budget=1)
    made(engine, task_of(ws, small(ws, "audioldm2")), tmp_path)
    task = task_of(ws, small(ws, "stable-audio"))
    made(engine, task, tmp_path)
    (loaded,) = shelf(engine)
    assert loaded.kind is KINDS["stable-audio"]
    with torch.no_grad():
        next(loaded.pipe.transformer.parameters()).fill_(float("nan"))
    with pytest.raises(StudioError, match="the sound: came out not finite"):
        engine.make(task, keep=lambda _index, _made: None)
    engine.unload()
    assert not shelf(engine)


def test_memory_that_runs_out_is_tried_in_pieces_and_then_said(
    ws: Workspace, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    task, tried, real = task_of(ws, small(ws, "stable-audio", count=2)), list[tuple[int, bool]](), Making.make

    def short(making: Making, index: int) -> Any:
        tried.append((index, making.loaded.pieces))
        if tried[-1] in ((0, False), (1, True)):
            raise torch.cuda.OutOfMemoryError
        return real(making, index)

    monkeypatch.setattr(Making, "make", short)
    writer = _Writer(task, tmp_path)
    with pytest.raises(StudioError, match="more memory than there is"):
        engine.make(task, keep=writer.keep_made)
    assert tried == [(0, False), (0, True), (1, True)]
    assert writer.files == ["000.wav"]


def test_the_command_line_makes_a_sound_through_the_queue(ws: Workspace, tmp_path: Path, capsys: Any):
    call = ["--home", str(ws.home), "sample", "--base", "stable-audio", "--prompt", "rain", "--steps", "2"]
    assert run([*call, "--set", "seconds=0.01", "--out", str(tmp_path)]) == 0
    (sound,) = tmp_path.glob("*.wav")
    assert capsys.readouterr().out == f"{sound}\n"
    with wave.open(str(sound)) as file:
        assert file.getnframes() == 160
    (sample,) = ws.catalog.list(Sample, limit=1)
    assert sample.request["settings"] == {"seconds": 0.01}
    (job,) = ws.catalog.list(Job, kind=JobKind.SAMPLE, subject_id=sample.id)
    assert job.state is JobState.DONE
