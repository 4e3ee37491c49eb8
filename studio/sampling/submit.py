"""Asking for pictures: check, write the request, queue it; wait for it; take the pictures out.

What is wrong with a request is said here, before it waits behind a training run.
"""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.errors import BadInput, Damaged, NotFound, StudioError
from registry.files import atomic_path, read_json, storage_error, temporary_beside
from registry.formats.header import read_header
from registry.ids import new_id
from registry.records import Adapter, AdapterUse, Base, Job, JobKind, JobState, Sample
from studio.adapter_files import require_file, settled
from studio.runs.checks import check_base, check_there
from studio.sampling.checks import check_modes
from studio.sampling.control.choosing import choose_net, mode_of
from studio.sampling.coverage import require_complete
from studio.sampling.defaults import component_config
from studio.sampling.files import take_files
from studio.sampling.media.kinds import Kind, beside_of, word_of
from studio.sampling.media.requests import checked, kind_of
from studio.sampling.prompts.ready import ready
from studio.sampling.request import AdapterChoice, SampleRequest
from studio.sampling.schedulers import check_scheduler
from studio.sampling.strengths import check_blocks
from studio.sampling.task import PROGRESS, SampleTask, TaskAdapter, TaskBase, TaskControl, TaskEmbedding
from trainers.families import FAMILIES

if TYPE_CHECKING:
    from studio.workspace import Workspace

MIN_SIZE = 16  # pixels
ENDED = {JobState.DONE, JobState.FAILED, JobState.CANCELLED}

_TEXT_INPUT = re.compile(r"attn2.*to_k")  # the layer of a UNet that reads the text encoder's output
_DOWN = re.compile(r"lora_A|lora[._]down|lora_linear_layer\.down|to_k_lora\.down")


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
        return _submit_media(ws, request, base, kind)
    check_base(ws, base)
    check_scheduler(request.scheduler, base.family)
    request, words = ready(ws, request, base.family)
    refiner = ws.catalog.get(Base, request.refiner) if request.refiner else None
    if refiner is not None:
        check_base(ws, refiner)
    check_modes(request, base, refiner)
    nets = [choose_net(ws, base, choice) for choice in request.controls]
    controls = tuple(
        choice.model_copy(update={"model": net.id})
        for choice, net in zip(request.controls, nets, strict=True)
    )
    adapters = [settled(ws, ws.catalog.get(Adapter, choice.id)) for choice in request.adapters]
    if len({adapter.id for adapter in adapters}) < len(adapters):
        raise BadInput("adapters", "name the same one twice", "give it one weight")
    for adapter, choice in zip(adapters, request.adapters, strict=True):
        check_blocks(adapter.name, choice.blocks)
        check_adapter(ws, adapter, base)
    if not request.partial:
        require_complete(ws, adapters, base)
    chosen = tuple(
        choice.model_copy(update={"id": adapter.id})
        for choice, adapter in zip(request.adapters, adapters, strict=True)
    )
    sample_id = new_id()
    request = request.model_copy(
        update={
            "base": base.id,
            "adapters": chosen,
            "refiner": refiner.id if refiner else "",
            "controls": controls,
        }
    )
    request = take_files(ws, request, ws.sample_dir(sample_id))
    task = SampleTask(
        id=sample_id,
        request=request,
        base=_task_base(base),
        refiner=_task_base(refiner) if refiner else None,
        adapters=tuple(
            _task_adapter(adapter, choice) for adapter, choice in zip(adapters, chosen, strict=True)
        ),
        embeddings=tuple(TaskEmbedding(word=word, path=ws.relative(path)) for word, path in words.items()),
        controls=tuple(_task_control(net, choice.kind) for net, choice in zip(nets, controls, strict=True)),
    )
    uses = tuple(
        AdapterUse(
            adapter_id=choice.id,
            weight=choice.weight,
            text_weight=choice.text_weight,
            tensor_sha256=adapter.tensor_sha256,
        )
        for adapter, choice in zip(adapters, chosen, strict=True)
    )
    return _queued(ws, task, uses)


def _submit_media(ws: "Workspace", request: SampleRequest, base: Base, kind: Kind) -> Sample:
    """Queue a video, a sound or a thing; the same checks, without what only pictures have."""
    motion = ws.catalog.get(Base, request.motion) if request.motion else None
    for part in (base, motion):
        if part is not None:
            check_there(ws, part)
    request = checked(ws, request, base, kind)
    sample_id = new_id()
    request = request.model_copy(update={"base": base.id, "motion": motion.id if motion else ""})
    request = take_files(ws, request, ws.sample_dir(sample_id))
    task = SampleTask(
        id=sample_id,
        request=request,
        base=_task_base(base),
        motion=_task_base(motion) if motion else None,
    )
    return _queued(ws, task)


def _queued(ws: "Workspace", task: SampleTask, uses: tuple[AdapterUse, ...] = ()) -> Sample:
    """The task's file first, then its rows."""
    folder = ws.sample_dir(task.id)
    value = task.request.model_dump(mode="json")
    try:
        task.write(folder)
        sample = ws.catalog.add(Sample(id=task.id, base_id=task.base.id, request=value, adapters=uses))
        ws.catalog.enqueue(Job(kind=JobKind.SAMPLE, subject_id=task.id))
    except StudioError:
        shutil.rmtree(folder, ignore_errors=True)
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


def check_adapter(ws: "Workspace", adapter: Adapter, base: Base) -> None:
    """Refuse an adapter that is gone, changed, or made for another base; both dimensions are named.

    Raises:
        NotFound, Damaged, BadInput: in one line.
    """
    path = require_file(ws, adapter)
    theirs = _text_width_of_adapter(path)
    ours = component_config(ws, base, "unet").get("cross_attention_dim")
    if theirs and ours and theirs != ours:
        raise BadInput(
            f"adapter {adapter.name}",
            f"reads text of width {theirs} ({adapter.family or 'unknown family'}), "
            f"base {base.name} gives {ours} ({base.family})",
            "use the base it was trained on",
        )
    if adapter.family and adapter.family != base.family:
        there, here = (
            FAMILIES[name].cross_attention_dim if name in FAMILIES else "?"
            for name in (adapter.family, base.family)
        )
        wrong = f"is for {adapter.family} (text width {there}), base {base.name} is {base.family} ({here})"
        raise BadInput(f"adapter {adapter.name}", wrong, "use a base of its family")


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


def _task_base(base: Base) -> TaskBase:
    return TaskBase(**{name: getattr(base, name) for name in TaskBase.__dataclass_fields__})


def _task_control(net: Base, kind: str) -> TaskControl:
    return TaskControl(
        id=net.id,
        name=net.name,
        location=net.location,
        kind=net.kind,
        map_kind=kind,
        mode=mode_of(net, kind),
        revision=net.revision,
        weight_hash=net.weight_hash,
    )


def _task_adapter(adapter: Adapter, choice: AdapterChoice) -> TaskAdapter:
    return TaskAdapter(
        id=adapter.id,
        name=adapter.name,
        path=adapter.path,
        tensor_sha256=adapter.tensor_sha256,
        file_sha256=adapter.file_sha256,
        weight=choice.weight,
        text_weight=choice.weight if choice.text_weight is None else choice.text_weight,
        blocks=choice.blocks,
        schedule=choice.schedule,
        peft=adapter.metadata.get("peft"),
    )


def _text_width_of_adapter(path: Path) -> int | None:
    """Width of the text that the adapter's cross-attention reads; None when it has none."""
    for name, info in read_header(path).tensors.items():
        if _TEXT_INPUT.search(name) and _DOWN.search(name) and len(info.shape) >= 2:
            return info.shape[1]
    return None


def _free(path: Path) -> Path:
    number = 2
    free = path
    while free.exists():
        free = path.with_stem(f"{path.stem}-{number}")
        number += 1
    return free
