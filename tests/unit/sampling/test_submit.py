"""Requests on their way: checked at the door, drawn by the warm process, taken out again."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image as Pixels

from registry.errors import BadInput, NotFound, StudioError
from registry.records import Base, Job, JobState, Run, RunState, Sample
from studio.runs.worker import Worker
from studio.sampling.client import SamplerClient, SampleResult
from studio.sampling.defaults import default_size
from studio.sampling.metadata.reading import read_metadata
from studio.sampling.prepare import check_adapter
from studio.sampling.request import AdapterChoice
from studio.sampling.submit import (
    cancel,
    collect,
    files_of,
    folder_for,
    job_of,
    progress,
    submit,
    wait,
)
from studio.sampling.task import PROGRESS, REQUEST, SampleTask
from studio.workspace import Workspace
from tests.support.adapters import make_form, write_run_file
from tests.support.fake_trainer import Script
from tests.support.sampling import MODULES, add_adapter, add_file, request
from tests.support.supervision import (
    QUICK,
    ROOT,
    WorkerProcess,
    clean_environment,
    fake_executor,
    make_run,
    state_of,
    until,
)


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "home")


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Workspace, SamplerClient]]:
    """One workspace and one sampler process for all tests that need pictures: starting one costs seconds."""
    workspace = Workspace.open(tmp_path_factory.mktemp("warm") / "home")
    client = SamplerClient(workspace)
    yield workspace, client
    client.unload()


class Kept(SamplerClient):
    """Lends a warm sampler to a worker without letting the worker end it."""

    def __init__(self, client: SamplerClient) -> None:
        self.__dict__ = client.__dict__

    def close(self) -> None:
        return


def work(warm: tuple[Workspace, SamplerClient]) -> Worker:
    return Worker(warm[0], sampler=Kept(warm[1]))


def test_the_default_size_is_what_the_base_was_made_for(ws: Workspace):
    assert default_size(ws, ws.catalog.get(Base, "pocket")) == (64, 64)
    hub = Base(name="hub", family="sd15", location="someone/base", kind="hub")
    assert default_size(ws, hub) == (512, 512)


def test_what_is_wrong_is_said_at_the_door(ws: Workspace, tmp_path: Path):
    ink = add_adapter(ws, "ink")
    with pytest.raises(NotFound, match="base 'nowhere'"):
        submit(ws, request(ws, base="nowhere"))
    with pytest.raises(NotFound, match="adapter 'missing'"):
        submit(ws, request(ws, adapters=(AdapterChoice(id="missing"),)))
    with pytest.raises(BadInput, match="twice"):
        submit(ws, request(ws, adapters=(AdapterChoice(id=ink.id), AdapterChoice(id="ink"))))
    with pytest.raises(BadInput, match="scheduler 'Eular'"):
        submit(ws, request(ws, scheduler="Eular"))
    lost = ws.catalog.add(Base(name="lost", family="sd15", location=str(tmp_path / "no"), kind="folder"))
    with pytest.raises(BadInput, match="base lost"):
        submit(ws, request(ws, base=lost.id))
    ws.resolve(ink.path).unlink()
    with pytest.raises(NotFound, match="of adapter ink is not there"):
        submit(ws, request(ws, adapters=(AdapterChoice(id=ink.id),)))
    assert ws.catalog.count(Sample) == ws.catalog.count(Job) == 0
    assert list((ws.home / "samples").iterdir()) == []


def test_an_adapter_for_another_text_width_is_refused_with_both(ws: Workspace):
    form = make_form({MODULES[3]: (320, 768)})
    foreign = add_file(ws, "foreign", write_run_file(form, ws.home / "adapters" / "f.safetensors"))
    with pytest.raises(BadInput, match=r"width 768.*gives 96"):
        check_adapter(ws, foreign, ws.catalog.get(Base, "pocket"))
    plain = write_run_file(make_form({MODULES[2]: (96, 96)}, seed=4), ws.home / "adapters" / "g.safetensors")
    other = add_file(ws, "other", plain, family="sd21")
    with pytest.raises(BadInput, match=r"sd21 .text width 1024.*sd15 .768"):
        check_adapter(ws, other, ws.catalog.get(Base, "pocket"))


def test_what_has_no_place_is_asked_about(ws: Workspace):
    extra = [f"unet.down_blocks.3.resnets.{n}.conv1" for n in range(4)]
    form = make_form({MODULES[2]: (96, 96), **dict.fromkeys(extra, (96, 96, 3, 3))})
    add_file(ws, "partly", write_run_file(form, ws.home / "adapters" / "p.safetensors"))
    choice = (AdapterChoice(id="partly", blocks={"MID": 0.5}, schedule=((0.0, 0.0), (1.0, 1.0))),)
    named = r"4 of 5 modules have no place in base pocket .unet.down_blocks.3.resnets.0.conv1, .*, \.\.\.."
    do = "allow to draw with the rest: --partial, on the page under More"
    with pytest.raises(BadInput, match=f"adapter partly: {named}. {do}"):
        submit(ws, request(ws, adapters=choice))
    with pytest.raises(BadInput, match="adapter partly, block 'MIDDLE'"):
        submit(ws, request(ws, adapters=(AdapterChoice(id="partly", blocks={"MIDDLE": 1.0}),)))
    assert ws.catalog.count(Sample) == 0
    sample = submit(ws, request(ws, adapters=choice, partial=True))
    (written,) = SampleTask.read(ws.sample_dir(sample.id)).adapters
    assert (written.blocks, written.schedule) == ({"MID": 0.5}, ((0.0, 0.0), (1.0, 1.0)))


def test_a_folder_that_nothing_was_put_into_goes_again(tmp_path: Path):
    new, used = tmp_path / "a" / "b", tmp_path / "used"

    def fail(folder: Path, *files: str) -> None:
        with folder_for(folder):
            for name in files:
                (folder / name).touch()
            raise BadInput("seed", "is wrong", "change it")

    for folder, files in ((new, ()), (used, ("1.png",))):
        with pytest.raises(BadInput, match="seed"):
            fail(folder, *files)
    assert [path.name for path in tmp_path.iterdir()] == ["used"]
    with folder_for(new):
        pass
    assert new.is_dir()


def test_a_request_becomes_pictures_with_their_history(warm: tuple[Workspace, SamplerClient], tmp_path: Path):
    ws, _ = warm
    ink = add_adapter(ws, "ink", seed=8)
    sample = submit(
        ws, request(ws, count=2, adapters=(AdapterChoice(id="ink", weight=0.8, text_weight=0.0),))
    )
    assert progress(ws, sample)["phase"] == "waiting"
    work(warm).run(until=lambda: job_of(ws, sample).state is JobState.DONE)
    made = ws.catalog.get(Sample, sample.id)
    assert made.files == (f"samples/{sample.id}/000.png", f"samples/{sample.id}/001.png")
    assert (made.adapters[0].adapter_id, made.adapters[0].tensor_sha256) == (ink.id, ink.tensor_sha256)
    said = progress(ws, sample)
    assert (said["state"], said["phase"], said["pictures"]) == ("done", "drawing", 2)
    for index, file in enumerate(files_of(ws, made)):
        with Pixels.open(file) as picture:
            assert picture.size == (32, 32)
        metadata = read_metadata(file)
        assert (metadata.prompt, metadata.seed) == ("a red circle", 5 + index)
    once, again = collect(ws, sample, tmp_path / "out"), collect(ws, sample, tmp_path / "out")
    assert len({*once, *again}) == 4
    assert once[0].read_bytes() == files_of(ws, made)[0].read_bytes()


def test_the_request_file_survives_a_move_of_the_workspace(ws: Workspace, tmp_path: Path):
    add_adapter(ws, "ink")
    sample = submit(ws, request(ws, adapters=(AdapterChoice(id="ink"),)))
    ws.catalog.close()
    ws.home.rename(tmp_path / "moved")
    moved = Workspace.open(tmp_path / "moved")
    task = SampleTask.read(moved.sample_dir(sample.id)).resolved(moved.resolve)
    assert Path(task.adapters[0].path).is_file()
    assert (Path(task.base.location) / "model_index.json").is_file()


def test_a_failing_request_does_not_end_the_sampler(warm: tuple[Workspace, SamplerClient]):
    ws, client = warm
    wild = add_adapter(ws, "wild", MODULES[:1], seed=3, conv_alpha=1e38)
    bad = submit(ws, request(ws, adapters=(AdapterChoice(id=wild.id, weight=4.0),)))
    good = submit(ws, request(ws))
    work(warm).run(until=lambda: job_of(ws, good).state is JobState.DONE)
    failed = job_of(ws, bad)
    assert failed.state is JobState.FAILED
    assert "not finite" in failed.error
    pid = client.pid
    assert pid is not None
    work(warm).run(once=True)
    assert client.pid == pid
    with pytest.raises(StudioError, match="not finite"):
        wait(ws, bad)


def test_cancel_while_drawing_and_while_queued(warm: tuple[Workspace, SamplerClient]):
    ws, client = warm
    long = submit(ws, request(ws, steps=500, count=64))
    queued = submit(ws, request(ws))
    cancel(ws, queued)
    assert job_of(ws, queued).state is JobState.CANCELLED

    def ended() -> bool:
        if progress(ws, long)["step"] > 0:
            cancel(ws, long)
        return job_of(ws, long).state is JobState.CANCELLED

    started = time.monotonic()
    work(warm).run(until=ended)
    assert time.monotonic() - started < 30
    assert ws.catalog.get(Sample, long.id).files == ()
    assert client.pid is not None


@pytest.mark.fault
def test_a_sampler_that_dies_gets_a_second_chance_and_then_it_is_said(warm: tuple[Workspace, SamplerClient]):
    ws, client = warm
    sample = submit(ws, request(ws, steps=40))
    killed: set[int] = set()

    def kill_at_work(times: int) -> bool:
        drawing = progress(ws, sample)["step"] > 0
        if drawing and client.pid and client.pid not in killed and len(killed) < times:
            killed.add(client.pid)
            (ws.sample_dir(sample.id) / PROGRESS).unlink()
            os.kill(client.pid, signal.SIGKILL)
        return job_of(ws, sample).state in {JobState.DONE, JobState.FAILED}

    work(warm).run(until=lambda: kill_at_work(1))
    assert job_of(ws, sample).state is JobState.DONE
    assert len(killed) == 1
    sample = submit(ws, request(ws, steps=100))
    killed.clear()
    work(warm).run(until=lambda: kill_at_work(2))
    job = job_of(ws, sample)
    assert job.state is JobState.FAILED
    assert "ended the sampler twice" in job.error


def test_an_idle_sampler_gives_its_memory_back(ws: Workspace):
    client = SamplerClient(ws, idle=0.3)
    client._spawn()
    assert client.pid is not None
    client.tick()
    assert client.pid is not None

    def gone() -> bool:
        client.tick()
        return client.pid is None

    until(gone)


@pytest.mark.fault
def test_a_sample_that_ends_its_workers_is_not_tried_for_ever(ws: Workspace):
    sample = submit(ws, request(ws))
    ws.catalog.update(Job, job_of(ws, sample).id, state=JobState.LEASED, owner="dead", attempts=3)
    Worker(ws, limits=QUICK).run(once=True)
    assert "3 workers died" in job_of(ws, sample).error


def test_a_request_file_that_is_lost_is_said(warm: tuple[Workspace, SamplerClient]):
    ws, _ = warm
    sample = submit(ws, request(ws))
    (ws.sample_dir(sample.id) / REQUEST).unlink()
    work(warm).run(once=True)
    assert "lost its request file" in job_of(ws, sample).error


def test_the_sampler_ends_with_its_input_and_stays_clean_on_stdout():
    command = [sys.executable, "-c", "import studio.sampling.server as s; print('noise'); s.main()"]
    server = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT,
        env=clean_environment(),
    )  # fmt: skip
    said, _ = server.communicate(timeout=60)
    assert said.decode().splitlines() == ["noise", '{"event": "ready"}']
    assert server.returncode == 0


@pytest.mark.fault
def test_a_sampler_never_outlives_its_worker(ws: Workspace):
    sample = submit(ws, request(ws, steps=40))
    worker = WorkerProcess(ws)
    until(lambda: progress(ws, sample)["step"] > 0, 60)
    children = psutil.Process(worker.process.pid).children()
    assert len(children) == 1
    worker.kill()
    until(lambda: not children[0].is_running() or children[0].status() == psutil.STATUS_ZOMBIE, 10)
    assert job_of(ws, sample).state is JobState.LEASED
    assert [file.name for file in wait(ws, sample)] == ["000.png"]  # the next worker begins it anew


class Recorder(SamplerClient):
    """Notes the state of a run whenever the sampler is used."""

    def __init__(self, ws: Workspace, run: Run) -> None:
        super().__init__(ws)
        self.watched, self.notes = run, list[tuple[str, RunState]]()

    def unload(self) -> None:
        self.notes.append(("unload", state_of(self._ws, self.watched)))

    def start(self, sample_id: str) -> None:
        self.notes.append(("start", state_of(self._ws, self.watched)))
        self._result = SampleResult(JobState.DONE)


@pytest.mark.parametrize("gpu", [True, False])
def test_only_on_a_gpu_samples_wait_for_the_trainer(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch, gpu: bool
):
    monkeypatch.setattr("studio.runs.worker.has_gpu", lambda: gpu)
    run = make_run(ws, Script(step_seconds=0.02))
    submit(ws, request(ws))
    recorder = Recorder(ws, run)
    Worker(ws, limits=QUICK, executor=fake_executor(ws), sampler=recorder).run(once=True)
    assert state_of(ws, run) is RunState.FINISHED
    if gpu:
        assert recorder.notes[:2] == [("unload", RunState.QUEUED), ("start", RunState.FINISHED)]
    else:
        assert recorder.notes[0] == ("start", RunState.STARTING)
