"""Where an adapter comes from, and where a picture went: the same chain read in both directions.

picture -> data sets -> runs -> adapters and bases -> what was made from those -> samples. A run counts by the
list of pictures that it was given, so what became of the data set later changes no answer.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from registry.errors import BadInput, NotFound
from registry.lineage import FIRST_HAND, noted_parents
from registry.records import JSON, Adapter, Base, Dataset, Image, Run, Sample
from studio.exports import exports_of
from studio.runs.frozen import fill_run_images, manifest_of

if TYPE_CHECKING:
    from studio.workspace import Workspace

SHORTEST = 4  # digits of a hash that may name a picture
_HASH = re.compile(r"[0-9a-f]{4,64}")


@dataclass(frozen=True)
class PictureUses:
    """Everything in the workspace that a picture went into; lists are newest first."""

    pixel_hash: str
    name: str
    datasets: tuple[Dataset, ...]  # that hold it now
    runs: tuple[Run, ...]  # that were given it, or trained on a base that was
    bases: tuple[Base, ...]  # full fine-tunes by such runs, and bases with such adapters baked in
    adapters: tuple[Adapter, ...]  # of such runs, and what was merged, resized or extracted from them
    samples: tuple[Sample, ...]  # made with such adapters or bases
    unknown: int  # adapters of which nobody wrote down what they were trained on

    @property
    def unknown_line(self) -> str:
        """One line about the adapters that may hold it, "" when there are none."""
        if not self.unknown:
            return ""
        what = "1 more adapter" if self.unknown == 1 else f"{self.unknown:,} more adapters"
        return f"{what} may hold it as well: what they were trained on is not known here."

    def to_dict(self) -> dict[str, Any]:
        """JSON types: ids, names and what tells one from another."""
        return {
            "pixel_hash": self.pixel_hash,
            "name": self.name,
            "datasets": [_named(d) for d in self.datasets],
            "runs": [_named(r) | {"state": str(r.state), "dataset_id": r.dataset_id} for r in self.runs],
            "bases": [_named(b) | {"family": b.family} for b in self.bases],
            "adapters": [
                _named(a)
                | {"origin": a.origin, "run_id": a.run_id, "step": a.step, "parents": list(a.parents)}
                | {"licence": a.licence, "consent": a.consent, "trashed": a.trashed_at is not None}
                for a in self.adapters
            ],
            "samples": [_sample(sample) for sample in self.samples],
            "unknown_adapters": self.unknown,
            "unknown": self.unknown_line,
        }


def uses_of_picture(ws: "Workspace", picture: str | Path) -> PictureUses:
    """Which data sets, runs, adapters and samples hold a picture.

    Args:
        ws: The workspace.
        picture: A picture file, compared by its pixels (a copy that was scaled or saved as another JPEG is
            another picture), or at least 4 digits that begin a blob or pixel hash.

    Raises:
        NotFound: neither a file nor the hash of a picture that is known here.
        BadInput: the file is no picture that we read, or the digits fit several.
    """
    return uses_of_pixels(ws, *_identify(ws, str(picture)))


def uses_of_pixels(ws: "Workspace", pixels: str, name: str = "") -> PictureUses:
    """The same for a picture that is known by its pixel hash; nothing holds one that nobody knows."""
    if not ws.catalog.read_only:
        fill_run_images(ws)
    catalog = ws.catalog
    held = {image.dataset_id for image in catalog.list(Image, pixel_hash=pixels)}
    runs, bases = _runs_and_bases(ws, catalog.lineage.runs_with(pixels))
    baked = _baked(ws)
    descent = catalog.lineage.descent() | baked
    while True:
        first = {adapter.id for adapter in catalog.lineage.of_runs(runs)}
        ids = _closure(first | set(bases), descent)
        new = (ids & baked.keys()) - bases.keys()
        if not new:
            break
        bases |= {base.id: base for base in catalog.list(Base, id=tuple(new))}
        on_those = {run.id for run in catalog.list(Run, base_id=tuple(new))}
        runs, more = _runs_and_bases(ws, runs | on_those)
        bases |= more
    adapters = catalog.lineage.adapters(ids)
    doubtful = _closure(catalog.lineage.unrecorded() | _of_unknown(ws, descent), descent)
    return PictureUses(
        pixel_hash=pixels,
        name=name,
        datasets=tuple(catalog.list(Dataset, id=tuple(held))),
        runs=tuple(catalog.list(Run, id=tuple(runs))),
        bases=tuple(bases.values()),
        adapters=tuple(adapters),
        samples=tuple(catalog.lineage.samples_with([(a.id, a.tensor_sha256) for a in adapters], set(bases))),
        unknown=len(doubtful - ids - baked.keys()),
    )


def origin_of(ws: "Workspace", adapter: Adapter, *, most_pictures: int | None = None) -> dict[str, Any]:
    """An adapter's whole history as JSON types; of each run's pictures only the first `most_pictures`.

    Keys: `id name origin step tensor_sha256 licence consent source created_at trashed`, `base` and `run` (or
    None; a run has `recipe versions seed dataset pictures picture_count`), `made` (operation and settings),
    `parents` (the same again; what is gone has `gone`, what stands elsewhere in the tree `repeated`),
    `samples`, `exports`.
    """
    tree = _Tree(ws, most_pictures).adapter(adapter)
    used = ws.catalog.lineage.samples_with([(adapter.id, adapter.tensor_sha256)])
    exports = [{k: v for k, v in e.items() if k != "report"} for e in exports_of(ws, adapter)]
    return tree | {"samples": [_sample(sample, adapter) for sample in used], "exports": exports}


def inherited(parents: Sequence[Adapter | Dataset]) -> tuple[str, str]:
    """(licence, consent) of what is made from these: each note once, and of whom there is none.

    Silence is no licence: where some parents have a note and others none, that is said.
    """
    licences = _joined([(parent.name, parent.licence) for parent in parents])
    return licences, _joined([(parent.name, parent.consent) for parent in parents])


class _Tree:
    """One walk up: a record that was told once is only named the second time, so that a walk ends."""

    def __init__(self, ws: "Workspace", most_pictures: int | None) -> None:
        self._ws, self._most, self._told = ws, most_pictures, set[str]()

    def adapter(self, adapter: Adapter) -> dict[str, Any]:
        """The adapter and everything before it."""
        if adapter.id in self._told:
            return _named(adapter) | {"repeated": True}
        self._told.add(adapter.id)
        catalog = self._ws.catalog
        run = catalog.find(Run, adapter.run_id) if adapter.run_id else None
        base = catalog.find(Base, adapter.base_id) if adapter.base_id else None
        made: Any = adapter.metadata.get("made")
        made = cast("JSON", made) if isinstance(made, dict) else {}
        return {
            **_named(adapter),
            "origin": adapter.origin,
            "step": adapter.step,
            "tensor_sha256": adapter.tensor_sha256,
            "licence": adapter.licence,
            "consent": adapter.consent,
            "source": adapter.source,
            "created_at": _time(adapter.created_at),
            "trashed": adapter.trashed_at is not None,
            "base": self.base(base, run.base_hash if run else "") if base else None,
            "run": self.run(run) if run else None,
            "made": {"operation": str(made.get("operation", "")), "settings": made.get("settings", {})},
            "parents": []
            if adapter.origin in FIRST_HAND
            else [*self._parents(adapter.parents, adapter.metadata)],
        }

    def _parents(self, known: Sequence[str], metadata: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
        """What it was made from, in order: adapters or bases, there or gone, with their weights."""
        notes = {str(parent["id"]): parent for parent in noted_parents(metadata)}
        there = {a.id: a for a in self._ws.catalog.lineage.adapters({*known, *notes})}
        bases = {base.id: base for base in self._ws.catalog.list(Base, id=tuple(notes))}
        for key in dict.fromkeys([*known, *notes]):
            note = notes.get(key, {})
            if key in there:
                found = self.adapter(there[key])
            elif key in bases:
                found = self.base(bases[key])
            else:
                found = {name: note.get(name, "") for name in ("name", "tensor_sha256")}
                found = {"id": key, **found, "gone": True}
            weight = note.get("weight")
            yield found | ({"weight": float(weight)} if isinstance(weight, int | float) else {})

    def base(self, base: Base, trained_on: str = "") -> dict[str, Any]:
        """A base with its hash, and the run that made it, or what was baked into it."""
        hashes = {"weight_hash": trained_on or base.weight_hash}
        if trained_on and trained_on != base.weight_hash:
            hashes["weight_hash_now"] = base.weight_hash
        maker = _maker(base)
        run = self._ws.catalog.find(Run, maker) if maker else None
        told: dict[str, Any] = {"run": self.run(run)} if run else {}
        if base.made and base.id in self._told:
            told |= {"repeated": True}
        elif base.made:
            self._told.add(base.id)
            made = {
                "operation": str(base.made.get("operation", "")),
                "settings": base.made.get("settings", {}),
            }
            told |= {"made": made, "parents": [*self._parents((), {"made": base.made})]}
        return _named(base) | {"family": base.family, **hashes} | told

    def run(self, run: Run) -> dict[str, Any]:
        """A run with its pictures."""
        if run.id in self._told:
            return _named(run) | {"repeated": True}
        self._told.add(run.id)
        parent = self._ws.catalog.find(Run, run.parent_run_id) if run.parent_run_id else None
        branched = {"id": run.parent_run_id, "name": parent.name if parent else "", "step": run.parent_step}
        return {
            **_named(run),
            "state": str(run.state),
            "goal": run.goal,
            "seed": run.seed,
            "step": run.step,
            "steps": run.steps,
            "recipe": run.recipe,
            "recipe_hash": run.recipe_hash,
            "versions": run.versions,
            "started_at": _time(run.started_at),
            "ended_at": _time(run.ended_at),
            "branched_from": branched if run.parent_run_id else None,
            "dataset": dataset_then(self._ws, run),
            "pictures": pictures_of(self._ws, run, self._most),
            "picture_count": self._ws.catalog.lineage.count_run_images(run.id),
        }


def dataset_then(ws: "Workspace", run: Run) -> dict[str, Any]:
    """The data set of a run: `state` is "as it was", "changed" or "gone"."""
    dataset = ws.catalog.find(Dataset, run.dataset_id)
    facts = {"id": run.dataset_id, "content_hash": run.dataset_hash}
    if dataset is None or dataset.id != run.dataset_id:
        return facts | {"name": "", "state": "gone"}
    state = "as it was" if dataset.content_hash == run.dataset_hash else "changed"
    return facts | {
        "name": dataset.name,
        "state": state,
        "licence": dataset.licence,
        "consent": dataset.consent,
    }


def pictures_of(ws: "Workspace", run: Run, most: int | None = None) -> list[dict[str, str]]:
    """What a run was given: pixel hash, blob, name; caption and role as long as its directory is there."""
    listed = ws.catalog.lineage.run_images(run.id, most)
    items = manifest_of(ws, run, most) or []
    words = {at: (item.caption, item.role) for at, item in enumerate(items)}
    return [
        {"pixel_hash": image.pixel_hash, "blob": image.blob, "name": image.name}
        | dict(zip(("caption", "role"), words.get(image.position, ("", "")), strict=True))
        for image in listed
    ]


def _identify(ws: "Workspace", picture: str) -> tuple[str, str]:
    """Pixel hash and name of what a person named."""
    from studio.datasets.decode import decode

    file, there = Path(picture), False
    with suppress(OSError, ValueError):  # a name too long for the system, or with a NUL in it
        there = file.exists()
    if there and not file.is_file():
        raise BadInput(picture, "is not a plain file", "give one picture")
    if there:
        return decode(file).pixel_hash, file.name
    shown = f"picture {picture[:100]!r}"
    if not _HASH.fullmatch(picture):
        raise NotFound(shown, "is no file", f"give a picture, or at least {SHORTEST} digits of its hash")
    found = ws.catalog.lineage.pictures_like(picture)
    if not found:
        raise NotFound(shown, "begins the hash of no picture here", "give the picture file itself")
    if len(found) > 1:
        those = ", ".join(f"{pixels[:12]} ({name})" for pixels, name in found.items())
        raise BadInput(shown, f"fits several ({those})", "give more digits")
    return next(iter(found.items()))


def _runs_and_bases(ws: "Workspace", runs: Iterable[str]) -> tuple[set[str], dict[str, Base]]:
    """These runs, the bases that they made, the runs on those bases, and so on."""
    catalog = ws.catalog
    of_runs = {maker: base for base in catalog.list(Base) if (maker := _maker(base))}
    seen, new, bases = set(runs), set(runs), dict[str, Base]()
    while made := [of_runs[run] for run in new if run in of_runs]:
        bases |= {base.id: base for base in made}
        new = {run.id for run in catalog.list(Run, base_id=tuple(base.id for base in made))} - seen
        seen |= new
    return seen, bases


def made_from(base: Base) -> str:
    """`pocket + ink x 0.8`: what a baked base was made of; "" for any other."""
    parts: list[str] = []
    for parent in noted_parents({"made": base.made}):
        weight: Any = parent.get("weight")
        parts.append(f"{parent.get('name', '')}{f' x {weight:g}' if isinstance(weight, int | float) else ''}")
    return " + ".join(parts)


def _baked(ws: "Workspace") -> dict[str, tuple[str, ...]]:
    """What each baked base got its pictures from: adapters, and a base that has some itself."""
    bases = {base.id: base for base in ws.catalog.list(Base)}
    own = {id for id, base in bases.items() if base.made or _maker(base)}
    return {
        id: tuple(p for parent in noted_parents({"made": base.made})
                  if (p := str(parent["id"])) in own or p not in bases)
        for id, base in bases.items() if base.made
    }  # fmt: skip


def _maker(base: Base) -> str:
    """The id of the run whose result the base is, else ""; see `studio.runs.full_results`."""
    folder, _, run = base.location.rpartition("/")
    return run if folder == "bases" else ""


def _closure(start: set[str], descent: Mapping[str, Sequence[str]]) -> set[str]:
    """`start` and everything that descends from it."""
    children: dict[str, list[str]] = {}
    for child, parents in descent.items():
        for parent in parents:
            children.setdefault(parent, []).append(child)
    seen, waiting = set(start), list(start)
    while waiting:
        for child in children.get(waiting.pop(), ()):
            if child not in seen:
                seen.add(child)
                waiting.append(child)
    return seen


def _of_unknown(ws: "Workspace", descent: Mapping[str, Sequence[str]]) -> set[str]:
    """Made from nothing that was written down, from what is gone, or from a base that came from elsewhere."""
    named = {parent for parents in descent.values() for parent in parents}
    bases = {base.id: _maker(base) for base in ws.catalog.list(Base)}
    runs = {run.id for run in ws.catalog.list(Run, id=tuple(bases.values()))}
    known = {base for base, run in bases.items() if run in runs} | (bases.keys() & descent.keys())
    known |= ws.catalog.lineage.existing(named - known)
    return {key for key, parents in descent.items() if not parents or not known.issuperset(parents)}


def _joined(notes: Sequence[tuple[str, str]]) -> str:
    if not any(text for _, text in notes):
        return ""
    parts = [part for name, text in notes for part in (text or f"not stated for {name}").split("; ")]
    return "; ".join(dict.fromkeys(parts))


def _named(record: Adapter | Base | Dataset | Run) -> dict[str, Any]:
    return {"id": record.id, "name": record.name}


def _sample(sample: Sample, adapter: Adapter | None = None) -> dict[str, Any]:
    facts = {
        "id": sample.id,
        "created_at": _time(sample.created_at),
        "prompt": str(sample.request.get("prompt", "")),
        "seed": sample.request.get("seed"),
        "files": list(sample.files),
        "adapters": [use.adapter_id for use in sample.adapters],
    }
    own = [use.weight for use in sample.adapters if adapter and use.adapter_id == adapter.id]
    return facts | ({"weight": own[0]} if own else {})


def _time(time: datetime | None) -> str:
    return time.isoformat() if time else ""
