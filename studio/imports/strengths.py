"""The strength of PEFT's files, which lies beside them: what is told of it, and what a later import learns.

A file that came without its configuration is taken at alpha = rank, and that is said. When the configuration
is there at a later import, or comes with another copy of the same weights, the adapter's row learns it.
"""

from pathlib import Path
from typing import Any

from registry.formats.inspect import inspect_adapter
from registry.formats.peft_config import ASSUMED, CONFIG, PeftConfig
from registry.records import Adapter


def told(row: Adapter) -> str:
    """What a load report says of the strength of a row that is taken in; "" = it is known."""
    return ASSUMED if _is_assumed(row) else ""


def learned(row: Adapter, file: Path) -> dict[str, Any]:
    """Fields of a known adapter that the configuration beside `file` settles; {} when nothing is open.

    Raises:
        BadInput: the configuration is unsound, or not that of these weights.
    """
    if not _is_assumed(row) or not file.with_name(CONFIG).is_file():
        return {}
    facts = inspect_adapter(file)
    if facts.peft is None or not facts.peft.values:
        return {}
    return {"alpha": facts.alpha, "metadata": row.metadata | {"peft": facts.peft.to_json()}}


def from_twin(known: Adapter, copy: Adapter) -> tuple[dict[str, Any], str]:
    """What another copy of the same weights tells of the strength of the known adapter.

    Returns:
        Fields to change of `known`, and a line for the report; both may be empty.
    """
    ours, theirs = _config(known), _config(copy)
    if not theirs or theirs == ours:
        return {}, ""
    if _is_assumed(known):
        changes = {"alpha": copy.alpha, "metadata": known.metadata | {"peft": copy.metadata["peft"]}}
        return changes, f"the strength of {known.name} is known now: alpha {copy.alpha:g}, rank {copy.rank}"
    strengths = f"alpha {copy.alpha:g}, where {known.name} has {known.alpha:g}"
    line = f"has the weights of {known.name} at another strength ({strengths}); the adapter keeps its own"
    return {}, line


def _is_assumed(row: Adapter) -> bool:
    found = PeftConfig.from_json(row.metadata.get("peft"))
    return found is not None and not found.values and row.method not in {"full", "norm", "oft"}


def _config(row: Adapter) -> dict[str, Any]:
    found = PeftConfig.from_json(row.metadata.get("peft"))
    return dict(found.values) if found else {}
