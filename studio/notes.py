"""Notes on licence and consent, of data sets and of adapters."""

from typing import TYPE_CHECKING, TypeVar

from registry.errors import BadInput
from registry.records import Adapter, Dataset

if TYPE_CHECKING:
    from studio.workspace import Workspace

FIELDS = ("licence", "consent")
LONGEST = 500  # characters
Noted = TypeVar("Noted", Adapter, Dataset)


def set_note(ws: "Workspace", record: Noted, field: str, text: str) -> Noted:
    """Replace one of FIELDS; "" takes it back. What was made from the record before keeps its own note.

    Raises:
        BadInput: longer than LONGEST, or not printable.
    """
    assert field in FIELDS
    text = " ".join(text.split())
    if len(text) > LONGEST:
        raise BadInput(
            field, f"has {len(text)} characters", f"use at most {LONGEST}, and a link for the rest"
        )
    if not text.isprintable():
        raise BadInput(field, "has control characters", "write plain text")
    return ws.catalog.update(type(record), record.id, **{field: text})
