"""Asking for pictures: check, write the request, queue it; wait for it; take the pictures out.

What is wrong with a request is said here, before it waits behind a training run.
"""

import os
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.errors import BadInput, Damaged, NotFound, StudioError
from registry.files import atomic_path, read_json, storage_error, temporary_beside
from registry.records import Base, Job, JobKind, JobState, Sample
from studio.sampling.media.kinds import beside_of, word_of
from studio.sampling.media.preparing import write_media
from studio.sampling.media.requests import kind_of
from studio.sampling.prepare import Prepared, prepare, write
from studio.sampling.request import SampleRequest
from studio.sampling.task import PROGRESS

if TYPE_CHECKING:
    from studio.workspace import Workspace

ENDED = {JobState.DONE, JobState.FAILED, JobState.CANCELLED}


def submit(ws: "Workspace", request: SampleRequest) -> Sample:
    """Queue a request; its folder holds all that the sampler needs.

    Raises:
        NotFound: no such base or adapter.
        BadInput: the base is gone, an adapter's file is missing or made for another base, unknown sampler,
            the prompt names an adapter, a wildcard or an embedding that is not there,
            modes that do not fit, a picture that cannot be read.
    """
    base = ws.catalog.get(Base, request.base)
    kind = kind_of(ws, request, base)
    if kind is not None:
        return _queued(ws, *write_media(ws, request, base, kind))
    return keep(ws, prepare(ws, request))


def keep(ws: "Workspace", prepared: Prepared) -> Sample:
    """Queue what was prepared.

    Raises:
        BadInput: a picture that it starts from cannot be read.
    """
    return _queued(ws, *write(ws, prepared))


def _queued(ws: "Workspace", sample: Sample, job: Job) -> Sample:
    """The rows of a sample whose folder is written."""
    try:
        ws.catalog.add(sample)
        ws.catalog.enqueue(job)
    except StudioError:
        shutil.rmtree(ws.sample_dir(sample.id), ignore_errors=True)
        raise
    return sample


def wait(ws: "Workspace", sample: Sample, say: Callable[[str], None] | None = None) -> list[Path]:
    """Stay until the sample is done; be the worker for samples when none holds the workspace.

    Raises:
        StudioError: it failed or was cancelled; says why.
        KeyboardInterrupt: Ctrl-C; the sample is called off.
    """
    from studio.runs.follow import (
        attend,
    )  # here: follow needs the worker, the worker needs the sampler's client

    reporter = _Reporter(ws, sample, say)
    try:
        attend(ws, reporter.ended, say, kinds=(JobKind.SAMPLE,))
    except KeyboardInterrupt:
        cancel(ws, sample)
        raise
    job = job_of(ws, sample)
    if job.state is not JobState.DONE:
        raise StudioError(f"sample {sample.id}", job.error.rstrip(".") or "no picture was made")
    for warning in job.result.get("warnings", ()):
        if say is not None:
            say(str(warning))
    return files_of(ws, ws.catalog.get(Sample, sample.id))


def cancel(ws: "Workspace", sample: Sample) -> None:
    """Call a sample off: at once while it is queued, within one step while it is drawn."""
    ws.catalog.cancel_job(job_of(ws, sample).id)


def progress(ws: "Workspace", sample: Sample) -> dict[str, Any]:
    """{"state", "phase", "step", "steps", "picture", "pictures", "preview", "error"}.

    `state` is the job's; `preview` says whether preview.png shows the picture being drawn.
    """
    job = job_of(ws, sample)
    phase = "waiting" if job.state is JobState.QUEUED else "loading"
    news: dict[str, Any] = {"phase": phase, "step": 0, "steps": 0, "picture": 0, "pictures": 0}
    news |= {"preview": False}
    try:
        if job.state is not JobState.QUEUED:
            news |= read_json(ws.sample_dir(sample.id) / PROGRESS)
    except (FileNotFoundError, Damaged):
        pass  # nothing said yet
    return news | {"state": str(job.state), "error": job.error}


def share_done(news: dict[str, Any], count: int) -> float:
    """How much of a sample of `count` pictures is drawn, 0 to 1, by what `progress` says."""
    within = news["step"] / news["steps"] if news["steps"] else 0.0
    return min(1.0, (max(0, int(news["picture"]) - 1) + within) / count)


def prepare_folder(out: Path) -> None:
    """Make the folder for the pictures; before they are drawn, so that no time is spent for nothing.

    Raises:
        BadInput: a file stands there, or in the way to it.
        StudioError: it cannot be made or written.
    """
    there = next((place for place in (out, *out.parents) if os.path.lexists(place)), None)
    if there is not None and not there.is_dir():
        raise BadInput(str(there), "is not a folder", "give a folder for the pictures")
    try:
        out.mkdir(parents=True, exist_ok=True)
        temporary = temporary_beside(out / "picture")
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        raise storage_error(out, error) from error


@contextmanager
def folder_for(out: Path) -> Generator[None]:
    """`prepare_folder`; what it made goes again when nothing was put into it because something failed."""
    made = [place for place in (out, *out.parents) if not os.path.lexists(place)]
    prepare_folder(out)
    try:
        yield
    except BaseException:
        for place in made:
            with suppress(OSError):  # not empty
                place.rmdir()
        raise


def collect(ws: "Workspace", sample: Sample, out: Path) -> list[Path]:
    """Copy the pictures of a finished sample into `out`, named by number; existing files are not replaced."""
    prepare_folder(out)
    copies: list[Path] = []
    for file in all_files(ws, ws.catalog.get(Sample, sample.id)):
        target = _free(out / f"{sample.id}-{file.name}")
        with atomic_path(target) as temporary:
            shutil.copyfile(file, temporary)
        copies.append(target)
    return copies


def files_of(ws: "Workspace", sample: Sample) -> list[Path]:
    """The pictures of a sample, or what else was made: one file each."""
    return [ws.resolve(file) for file in sample.files]


def all_files(ws: "Workspace", sample: Sample) -> list[Path]:
    """Everything that was made, what lies beside a file right behind it."""
    return [
        file
        for index, main in enumerate(files_of(ws, sample))
        for file in (main, *beside_of(ws, sample, index))
    ]


def job_of(ws: "Workspace", sample: Sample) -> Job:
    """The newest job of a sample.

    Raises:
        NotFound: it has none any more.
    """
    jobs = ws.catalog.list(Job, kind=JobKind.SAMPLE, subject_id=sample.id, limit=1)
    if not jobs:
        raise NotFound(f"sample {sample.id}", "has no job", "ask for it again")
    return jobs[0]


class _Reporter:
    """Says what changes while a sample is drawn."""

    def __init__(self, ws: "Workspace", sample: Sample, say: Callable[[str], None] | None) -> None:
        self._ws, self._sample, self._say, self._line = ws, sample, say, ""
        self._word = word_of(str(sample.request.get("kind", "")))

    def ended(self) -> bool:
        """Whether the job has ended; says what is new on the way."""
        if job_of(self._ws, self._sample).state in ENDED:
            return True
        if self._say is not None:
            news = progress(self._ws, self._sample)
            line = str(news["phase"])
            if news["picture"]:
                line = f"{self._word} {news['picture']} of {news['pictures']}"
            if line != self._line:
                self._line = line
                self._say(line)
        return False


def _free(path: Path) -> Path:
    number = 2
    free = path
    while free.exists():
        free = path.with_stem(f"{path.stem}-{number}")
        number += 1
    return free
