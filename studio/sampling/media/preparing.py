"""A request for a video, a sound or a thing made ready: the same checks, without what only pictures have."""

from typing import TYPE_CHECKING

from registry.ids import new_id
from registry.records import Base, Job, JobKind, Sample
from studio.runs.checks import check_there
from studio.sampling.files import take_files
from studio.sampling.media.kinds import Kind
from studio.sampling.media.requests import checked
from studio.sampling.prepare import task_base, write_task
from studio.sampling.request import SampleRequest
from studio.sampling.task import SampleTask

if TYPE_CHECKING:
    from studio.workspace import Workspace


def write_media(ws: "Workspace", request: SampleRequest, base: Base, kind: Kind) -> tuple[Sample, Job]:
    """Write what the sampler needs into the folder of a new sample; its row and job, not in the catalog yet.

    Raises:
        NotFound, BadInput: a base is gone, or the request does not go with the kind; in one line.
        StudioError: it cannot be written; nothing is left of it.
    """
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
        base=task_base(base),
        motion=task_base(motion) if motion else None,
    )
    write_task(ws, task)
    sample = Sample(id=sample_id, base_id=base.id, request=request.model_dump(mode="json"))
    return sample, Job(kind=JobKind.SAMPLE, subject_id=sample_id)
