"""A mix of adapters as one JSON document, to be kept or handed on. Free of torch.

It names each adapter and says the hash of its weights, so that another catalog finds the same ones under
whatever name, and never others in silence.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from registry.errors import BadInput
from registry.records import Base
from studio.sampling.again import same_adapter
from studio.sampling.chosen import chosen_adapter
from studio.sampling.metadata.said import AdapterMark
from studio.sampling.request import AdapterChoice

if TYPE_CHECKING:
    from studio.workspace import Workspace

KIND = "lora_studio.mix"
MAX_BYTES = 2**20


class _Part(AdapterChoice):
    """An adapter of a mix, by name and hash instead of by id."""

    id: Annotated[str, Field(exclude=True)] = ""
    name: str
    tensor_sha256: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] = ""
    """Of the weights (`registry.hashing`); none = by name alone."""


class Mix(BaseModel):
    """Adapters that act together, and what they are for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Annotated[str, Field(pattern=f"^{KIND}$")] = KIND
    version: Annotated[int, Field(ge=1, le=1)] = 1
    family: str = ""
    base: str = ""
    """Name of the base it was made with; for people to read."""
    base_hash: str = ""
    adapters: Annotated[tuple[_Part, ...], Field(max_length=100)]


def mix_text(ws: "Workspace", base: Base, choices: Sequence[AdapterChoice]) -> str:
    """The document."""
    parts: list[_Part] = []
    for choice in choices:
        adapter = chosen_adapter(ws, choice.id)
        own = {"id": "", "name": adapter.name, "tensor_sha256": adapter.tensor_sha256}
        parts.append(_Part.model_validate(choice.model_dump() | own))
    mix = Mix(family=base.family, base=base.name, base_hash=base.weight_hash, adapters=tuple(parts))
    return mix.model_dump_json(indent=2) + "\n"


def read_mix(ws: "Workspace", text: str, what: str, family: str = "") -> tuple[AdapterChoice, ...]:
    """The adapters of a document as the catalog has them.

    Args:
        ws: Where they are looked for: by the hash of their weights, then by name.
        text: The document.
        what: Its name, for errors.
        family: That of the base they are wanted for; "" = any.

    Raises:
        BadInput: it is no mix, is for another family, or an adapter has other weights here.
        NotFound: an adapter is not here.
    """
    try:
        mix = Mix.model_validate(json.loads(text.removeprefix("\ufeff")))
    except (ValueError, RecursionError) as error:
        wrong = f"is not a mix of adapters ({_why(error)})"
        raise BadInput(what, wrong, "save one on the Sample page, or with --save-mix") from None
    if family and mix.family and mix.family != family:
        wrong = f"is a mix for {mix.family}, the base is {family}"
        raise BadInput(what, wrong, "choose a base of its family")
    marks = [(part, AdapterMark(part.name, tensor_sha256=part.tensor_sha256)) for part in mix.adapters]
    found = [(part, same_adapter(ws, mark, mix.family or family)) for part, mark in marks]
    fields = set(AdapterChoice.model_fields)
    return tuple(
        AdapterChoice.model_validate(part.model_dump(include=fields) | {"id": adapter.id})
        for part, adapter in found
    )


def read_mix_file(ws: "Workspace", path: Path, family: str = "") -> tuple[AdapterChoice, ...]:
    """`read_mix` of a file."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode("utf-8-sig") if len(data) <= MAX_BYTES else ""
    except OSError as error:
        raise BadInput(str(path), f"cannot be read ({error.strerror})", "check the path") from error
    except UnicodeDecodeError:
        text = ""
    return read_mix(ws, text, str(path), family)


def _why(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return "no JSON"
    first: Any = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    return f"{field or 'it'}: {str(first['msg'])[:1].lower()}{str(first['msg'])[1:]}"
