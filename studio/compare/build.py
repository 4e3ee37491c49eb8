"""A spec from what a person writes: texts of values, and a base by name."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from registry.errors import BadInput
from registry.records import Base
from studio.compare.axes import Value, axis
from studio.compare.spec import Spec, make_spec
from studio.sampling.defaults import default_guidance, default_size
from studio.sampling.request import SampleRequest

if TYPE_CHECKING:
    from studio.workspace import Workspace


def base_request(
    ws: "Workspace", base: str, *, size: tuple[int, int] | None = None, **fields: Any
) -> SampleRequest:
    """What all cells share, with the base's own size and guidance where nothing else is said.

    Raises:
        NotFound, BadInput: no such base, or a value is out of range.
    """
    from pydantic import ValidationError

    record = ws.catalog.get(Base, base)
    width, height = size or default_size(ws, record)
    values: dict[str, Any] = {"cfg": default_guidance(record), "width": width, "height": height, **fields}
    try:
        return SampleRequest(base=record.id, **values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise BadInput(f"{field} {first.get('input')!r:.60}", first["msg"].lower(), "change it") from None


def from_texts(ws: "Workspace", base: SampleRequest, texts: Mapping[str, Sequence[str]]) -> Spec:
    """A spec whose axes are those with a text; `all` checkpoints of a run become one value each.

    Raises:
        NotFound, BadInput: a value names nothing, or cannot be read; in one line.
    """
    values: dict[str, list[Value]] = {}
    for name, written in texts.items():
        if written:
            values[name] = [value for text in written for value in axis(name).read(ws, text)]
    return make_spec(base.model_copy(update={"count": 1}), values, labels_for(ws, values))


def labels_for(ws: "Workspace", values: Mapping[str, Sequence[Value]]) -> dict[str, list[str]]:
    """How each value is said."""
    return {name: [axis(name).label_of(ws, value) for value in row] for name, row in values.items()}
