"""A picture's own settings as a request: to make it again, or with another seed. Free of torch."""

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from registry.errors import BadInput, StudioError
from registry.records import Adapter, Base
from studio.sampling.chosen import find_adapter as find_chosen
from studio.sampling.defaults import default_guidance, default_size
from studio.sampling.media.kinds import MEDIA, MOTION
from studio.sampling.metadata.reading import read_metadata
from studio.sampling.metadata.said import AdapterMark, PictureMetadata
from studio.sampling.prompts.ready import find_adapter
from studio.sampling.request import AdapterChoice, SampleRequest

if TYPE_CHECKING:
    from studio.workspace import Workspace

SURE = 8  # hex digits of a hash that tell files apart


def request_of(ws: "Workspace", path: Path) -> SampleRequest:
    """What makes the picture at `path` again.

    Our own pictures say everything, so the same machine makes the same bytes. Others' say the usual settings;
    what they leave out is the default of the base. Base and adapters are found by id, by hash of weights,
    then by name; one that has other weights now is refused.

    Raises:
        BadInput: the picture says nothing we read, or names what is not here; in one line.
    """
    said = read_metadata(path)
    if not said.source:
        wrong = "does not say how it was made"
        raise BadInput(str(path), wrong, "use a picture that still has its metadata")
    base = _base(ws, said)
    adapters = [same_adapter(ws, mark, base.family) for mark in said.adapters]
    if said.request is not None:
        if len(adapters) != len(said.request.adapters):
            raise BadInput(str(path), "does not say which adapters acted", "use a picture as it was written")
        chosen = tuple(
            choice.model_copy(update={"id": adapter.id})
            for choice, adapter in zip(said.request.adapters, adapters, strict=True)
        )
        motion = _motion(ws, said) if said.request.motion else ""
        return said.request.model_copy(update={"base": base.id, "adapters": chosen, "motion": motion})
    return _from_others(ws, path, said, base, adapters)


def _base(ws: "Workspace", said: PictureMetadata) -> Base:
    keys = [said.request.base if said.request else "", said.base_name]
    named = [base for key in keys if key and (base := ws.catalog.find(Base, key)) is not None]
    for base in (*named, *ws.catalog.list(Base, part=("", *MEDIA))):
        if len(said.base_hash) >= SURE and base.weight_hash.startswith(said.base_hash.lower()):
            return base
    name = f"base {said.base_name or 'of the picture'}"
    if not said.base_name or not named:
        raise BadInput(name, "is not in the catalog", "add it: `studio bases add NAME LOCATION`")
    # Other programs hash the file: of a folder we know no such hash, so its name has to do.
    comparable = said.request is not None or (named[0].kind == "file" and len(said.base_hash) >= SURE)
    if named[0].weight_hash and said.base_hash and comparable:
        wrong = "has other weights than the picture was made with"
        raise BadInput(name, wrong, "add the old ones under another name")
    return named[0]


def _motion(ws: "Workspace", said: PictureMetadata) -> str:
    """Id of the motion adapter of a video, by its weights.

    Raises:
        BadInput: there is none with these weights.
    """
    for motion in ws.catalog.list(Base, part=MOTION):
        if motion.weight_hash and motion.weight_hash == said.motion_hash:
            return motion.id
    wrong = "is not in the catalog with the weights that the video was made with"
    thing = f"motion adapter {said.motion_name or 'of the video'}"
    raise BadInput(thing, wrong, "add it: `studio bases add NAME FOLDER`")


def same_adapter(ws: "Workspace", mark: AdapterMark, family: str) -> Adapter:
    """The adapter that a picture or a mix names: by id, by the hash of its weights, then by name.

    Raises:
        NotFound: there is none.
        BadInput: the one of that name has other weights.
    """
    gone: StudioError | None = None
    try:
        found = find_chosen(ws, mark.id) if mark.id else None
    except StudioError as error:  # a checkpoint that is not kept any more; its weights may be an adapter
        found, gone = None, error
    if found is not None and found.tensor_sha256 == mark.tensor_sha256:
        return found
    wanted = mark.tensor_sha256.lower()
    if len(wanted) == 64:
        same = ws.catalog.list(Adapter, tensor_sha256=wanted, limit=1)
        if same:
            return same[0]
    if gone is not None:
        raise gone
    found = found or find_adapter(ws, mark.name, family)
    if found.tensor_sha256 and not found.tensor_sha256.startswith(wanted):
        do = "import the old file, or ask for the new one by name"
        raise BadInput(f"adapter {mark.name}", "has other weights than are meant", do)
    return found


def _from_others(
    ws: "Workspace", path: Path, said: PictureMetadata, base: Base, adapters: list[Adapter]
) -> SampleRequest:
    """From what other programs write."""
    width, height = default_size(ws, base)
    try:
        return SampleRequest(
            base=base.id,
            adapters=tuple(
                AdapterChoice(id=adapter.id, weight=mark.weight, text_weight=mark.text_weight)
                for adapter, mark in zip(adapters, said.adapters, strict=True)
            ),
            prompt=said.prompt,
            negative=said.negative,
            steps=said.steps or SampleRequest.model_fields["steps"].default,
            cfg=default_guidance(base) if said.cfg is None else said.cfg,
            seed=(said.seed or 0) % 2**32,
            width=said.width or width,
            height=said.height or height,
            scheduler=said.scheduler,
            **said.more,
        )
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        wrong = f"says settings that cannot be drawn here ({field}: {first['input']!r:.40})"
        raise BadInput(str(path), wrong, "give them by hand: `studio sample --help`") from error
