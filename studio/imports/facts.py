"""A row for a file that was not hashed yet: everything that its header and the files beside it say."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from registry.formats.header import read_header
from registry.formats.inspect import AdapterFacts, facts_of
from registry.records import Adapter, FileState
from studio.base_links import named_hashes
from studio.imports import text
from studio.imports.scan import Found
from studio.imports.sidecars import Sidecar, read_sidecars

MOST_KEYWORDS = 200
LONGEST_KEYWORDS = 4000  # characters
# File names that tools give to every adapter: the folder says more.
_PLAIN = {"adapter_model", "pytorch_lora_weights", "lora", "model", "adapter", "last", "output", "checkpoint"}


def describe(file: Found, *, tags: tuple[str, ...], job_id: str, source: str = "") -> tuple[Adapter, Sidecar]:
    """The row of a file, without an id and under a name that may be taken, and what lies beside the file.

    Args:
        file: The file.
        tags: To put on it.
        job_id: The import that lists it.
        source: Where it came from; "" = its path.

    Raises:
        BadInput: the file is unsound or holds no adapter.
    """
    header = read_header(file.path)
    facts = facts_of(file.path, header)
    beside = read_sidecars(file.path)
    row = Adapter(
        name=name_of(file.path, facts, beside),
        tensor_sha256="",
        file_sha256="",
        path="",
        size=file.size,
        family=facts.family,
        method=facts.method,
        rank=facts.rank,
        alpha=facts.alpha,
        targets=facts.targets,
        trigger_words=_trigger_words(facts, beside),
        recommended_weight=1.0 if beside.weight is None else beside.weight,
        tags=tuple(dict.fromkeys([*tags, *beside.tags, *text.words(facts.metadata.get("modelspec.tags"))])),
        note=beside.note or text.note(facts.metadata.get("modelspec.description")),
        licence=text.line(facts.metadata.get("modelspec.license")) or beside.licence,
        keywords=keywords(facts.metadata),
        origin="import",
        source=source or beside.source or str(file.path),
        file_state=FileState.NEW,
        mtime_ns=file.mtime_ns,
        metadata=_metadata(facts, beside, job_id),
    )
    return row, beside


def name_of(path: Path, facts: AdapterFacts, beside: Sidecar) -> str:
    """The title in the file, else a sidecar's, kohya's output name, the file's or its folder's name."""
    stem = path.stem if path.stem.lower() not in _PLAIN else path.parent.name
    if facts.peft is not None and facts.peft.component:  # PEFT's folder of one part of a pipeline
        stem = f"{path.parent.parent.name} {path.parent.name}".strip()
    own = (facts.metadata.get("modelspec.title"), beside.name, facts.metadata.get("ss_output_name"), stem)
    return next((name for value in own if (name := text.title(value))), "adapter")


def keywords(metadata: Mapping[str, str]) -> str:
    """Tags of the captions it was trained on, the most frequent first (kohya's `ss_tag_frequency`)."""
    try:
        folders: Any = json.loads(metadata.get("ss_tag_frequency", ""))
    except (ValueError, RecursionError):
        return ""
    counts: Counter[str] = Counter()
    for folder in cast("dict[str, Any]", folders).values() if isinstance(folders, dict) else ():
        for tag, count in cast("dict[str, Any]", folder).items() if isinstance(folder, dict) else ():
            if isinstance(count, int):
                counts[tag] += min(count, 10**9)
    found = dict.fromkeys(text.line(tag) for tag, _ in counts.most_common(MOST_KEYWORDS))
    joined = ""
    for tag in found:
        if len(joined) + len(tag) > LONGEST_KEYWORDS:
            break
        joined += f", {tag}" if joined and tag else tag
    return joined


def _trigger_words(facts: AdapterFacts, beside: Sidecar) -> tuple[str, ...]:
    own = [word for value in facts.trigger_words if (word := text.line(value))]
    return tuple(dict.fromkeys([*own, *beside.trigger_words]))[: text.MOST_WORDS]


def _metadata(facts: AdapterFacts, beside: Sidecar, job_id: str) -> dict[str, Any]:
    base_name = text.line(facts.base_name) or beside.base_name
    return {
        "modules": facts.modules,
        "dtype": facts.dtype,
        "layout": facts.layout,
        "identified": {"confidence": facts.confidence, "reason": text.line(facts.reason, 500)},
        "import": {"job": job_id, "sidecars": list(beside.kinds)},
        **({"peft": facts.peft.to_json()} if facts.peft else {}),
        **({"base_name": base_name} if base_name else {}),
        **({"base_hashes": hashes} if (hashes := named_hashes(facts.metadata)) else {}),
    }
