"""Operations on adapters of the catalog: merge, resize, extract, bake, edit, X-ray.

The arithmetic is in `registry.formats.operations`; here adapters are found, proven, and what is made is kept.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.errors import BadInput, Damaged
from registry.files import atomic_path, check_name, expand_home, require_space
from registry.formats.header import read_header
from registry.formats.internal import AdapterForm
from registry.formats.load import load_adapter
from registry.formats.operations import bake as baking
from registry.formats.operations import extract as extraction
from registry.formats.operations import merge as merging
from registry.formats.operations import resize as resizing
from registry.formats.operations import xray as xraying
from registry.formats.operations.edit import Edit, edited
from registry.formats.operations.merge import Ingredient, MergeSettings
from registry.formats.operations.ranks import RankRule
from registry.formats.operations.report import OperationReport, common
from registry.formats.operations.sources import BaseWeights
from registry.formats.operations.strength import Strength, make_strength
from registry.formats.peft_config import PeftConfig
from registry.formats.streaming import rewrite_metadata
from registry.hashing import hash_adapter
from registry.records import Adapter, Base, FileState
from studio.adapters import require_file
from studio.bases import add_base, check_available, detect_base
from studio.made import Parent, baked_from, register_made, require_free_name, united

if TYPE_CHECKING:
    from studio.workspace import Workspace

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Use:
    """An adapter that takes part in an operation.

    Args:
        key: Id or name.
        weight: Of the denoiser.
        text: Of the text encoders; None = as `weight`.
        blocks: Factors of blocks in the grammar of `registry.formats.operations.strength`: "IN04-08=0,MID=1".
    """

    key: str
    weight: float = 1.0
    text: float | None = None
    blocks: str = ""

    @property
    def strength(self) -> Strength:
        """Checked weights."""
        return make_strength(self.weight, self.text, self.blocks)


@dataclass(frozen=True)
class Made:
    """A new adapter and how close it is to what was asked for."""

    adapter: Adapter
    report: OperationReport

    def to_dict(self) -> dict[str, Any]:
        """Both as JSON types, but for the record, which the caller makes plain."""
        return {"adapter": self.adapter, "report": self.report.to_dict()}


@dataclass(frozen=True)
class Baked:
    """A base with adapters in it, and its row when it was added."""

    report: baking.BakeReport
    base: Base | None = None

    def to_dict(self) -> dict[str, Any]:
        """Both as JSON types, but for the record."""
        return {**asdict(self.report), "base": self.base}


@dataclass(frozen=True)
class _Loaded:
    adapter: Adapter
    form: AdapterForm
    dtype: str
    strength: Strength = field(default_factory=Strength)


def merge(
    ws: "Workspace",
    uses: Sequence[Use],
    *,
    name: str,
    settings: MergeSettings | None = None,
    dtype: str = "",
    base: str = "",
    progress: Progress | None = None,
) -> Made:
    """Several adapters as one new one.

    Args:
        ws: The workspace.
        uses: Adapters and weights.
        name: Of the new adapter.
        settings: Method and rank; default: exactly, ranks added up.
        dtype: Of the file; "" = that of the adapters where they have the same, else fp32.
        base: Id or name; DoRA and OFT need it, the adapters' own is taken when nothing is said.
        progress: Told (modules done, modules).

    Raises:
        NotFound: no such adapter or base, or a file is gone.
        BadInput: the name is taken, or the adapters cannot be merged.
        StudioError: the disk is full.
    """
    settings = (settings or MergeSettings()).checked()
    require_free_name(ws, name)
    loaded = [_load(ws, use.key, use.strength) for use in uses]
    parts = [Ingredient(item.adapter.name, item.form, item.strength) for item in loaded]
    merging.one_family(parts)
    form, report = merging.merge(parts, settings, _weights(ws, base, loaded), progress)
    parents = [Parent(item.adapter, item.strength.weight) for item in loaded]
    dtype = _dtype(dtype, loaded)
    made = {
        "operation": "merge",
        "settings": {**asdict(settings), "strengths": [asdict(item.strength) for item in loaded]},
        "report": report.to_dict(modules=False),
    }
    del loaded, parts  # a gigabyte of a large adapter, before as much is written
    adapter = register_made(ws, form, name=name, origin="merge", dtype=dtype, made=made, parents=parents)
    return Made(adapter, report)


def resize(
    ws: "Workspace",
    key: str,
    rule: RankRule,
    *,
    name: str,
    alpha: str = "rank",
    dtype: str = "",
    base: str = "",
    progress: Progress | None = None,
) -> Made:
    """An adapter at another rank, as a new one; see `registry.formats.operations.resize`.

    Raises:
        NotFound: no such adapter or base, or a file is gone.
        BadInput: the name is taken, or the rule cannot be used.
        StudioError: the disk is full.
    """
    rule.checked()
    require_free_name(ws, name)
    loaded = [_load(ws, key)]
    form, report = resizing.resize(
        loaded[0].form, rule, alpha=alpha, weights=_weights(ws, base, loaded), progress=progress
    )
    made = {
        "operation": "resize",
        "settings": {**asdict(rule), "alpha": alpha},
        "report": report.to_dict(modules=False),
    }
    adapter = register_made(
        ws, form, name=name, origin="resize", dtype=_dtype(dtype, loaded), made=made,
        parents=[Parent(loaded[0].adapter)],
    )  # fmt: skip
    return Made(adapter, report)


def extract(
    ws: "Workspace",
    base: str,
    tuned: str | Path,
    rule: RankRule,
    *,
    name: str,
    components: Collection[str] = (),
    convolutions: bool = True,
    dtype: str = "fp16",
    progress: Progress | None = None,
) -> Made:
    """A new adapter from what a fine-tuned model has that its base has not.

    Args:
        ws: The workspace.
        base: Id or name of the base.
        tuned: Another base of the catalog, a diffusers folder or a .safetensors checkpoint.
        rule: Rank of each module.
        name: Of the new adapter.
        components: "unet", "text_encoder", ...; () = all.
        convolutions: Also those of 3 x 3.
        dtype: Of the file.
        progress: Told (modules done, modules).

    Raises:
        NotFound: base or model is not there.
        BadInput: families or shapes differ, or nothing does.
        StudioError: the disk is full.
    """
    rule.checked()
    require_free_name(ws, name)
    record = ws.catalog.get(Base, base)
    ours = _open(ws, record)
    theirs = _open_any(ws, str(tuned), record, ours)
    unknown = [part for part in components if not any(m.startswith(f"{part}.") for m in ours.places)]
    if unknown:
        known = ", ".join(dict.fromkeys(module.partition(".")[0] for module in ours.places))
        raise BadInput(f"component {unknown[0]!r}", "is not in the base", f"use one of {known}")
    form, report = extraction.extract(
        ours, theirs, rule, components=components, convolutions=convolutions, progress=progress
    )
    made = {
        "operation": "extract",
        "settings": {**asdict(rule), "components": list(components), "convolutions": convolutions},
        "base": {"id": record.id, "name": record.name, "weight_hash": record.weight_hash},
        "tuned": theirs.path.name,
        "report": report.to_dict(modules=False),
    }
    adapter = register_made(
        ws, form, name=name, origin="extract", dtype=dtype, made=made, parents=[], base_id=record.id
    )
    return Made(adapter, report)


def bake(
    ws: "Workspace",
    base: str,
    uses: Sequence[Use],
    out: str | Path,
    *,
    dtype: str = "",
    overwrite: bool = False,
    add: str = "",
    progress: Progress | None = None,
) -> Baked:
    """Write a base with adapters in its weights.

    Args:
        ws: The workspace.
        base: Id or name.
        uses: Adapters and weights.
        out: A name that ends in .safetensors for a single file, else a folder.
        dtype: "fp32", "fp16", "bf16"; "" = as stored.
        overwrite: Replace a file or a model's folder.
        add: Add the result to the bases under this name.
        progress: Told (bytes done, bytes).

    Raises:
        NotFound: no such base or adapter, or a file is gone.
        BadInput: something does not fit or stands in the way.
        StudioError: the disk is full.
    """
    if add:
        check_name(add)
        if ws.catalog.find(Base, add) is not None:
            raise BadInput(f"base {add!r}", "exists already", "choose another name")
    record = ws.catalog.get(Base, base)
    weights = _open(ws, record)
    loaded = [_load(ws, use.key, use.strength) for use in uses]
    parts = [Ingredient(item.adapter.name, item.form, item.strength) for item in loaded]
    place = expand_home(out).absolute()
    report = baking.bake(weights, parts, place, dtype=dtype, overwrite=overwrite, progress=progress)
    if not add:
        return Baked(report)
    config = ""
    if report.kind == "file":
        config = str(ws.resolve(record.config) if record.config else weights.path)
    parents = [Parent(item.adapter, item.strength.weight) for item in loaded]
    strengths = [asdict(item.strength) for item in loaded]
    made = baked_from(record, parents, {"dtype": report.dtype, "strengths": strengths}, report.modules)
    return Baked(report, add_base(ws, add, str(place), family=record.family, config=config, made=made))


def edit(ws: "Workspace", key: str, changes: Edit, *, in_place: bool = False) -> Adapter:
    """Change the metadata of an adapter's file and what the catalog says of it; its weights stay, to the bit.

    Args:
        ws: The workspace.
        key: Id or name.
        changes: What to change.
        in_place: Also where the file lies outside the workspace.

    Raises:
        NotFound: no such adapter, or its file is gone.
        BadInput: the changes cannot be made, or the file is not ours to change.
        StudioError: the disk is full.
    """
    adapter = ws.catalog.get(Adapter, key)
    path = require_file(ws, adapter).resolve()  # a link stays one
    if not in_place and not path.is_relative_to(ws.home.resolve()):
        raise BadInput(str(path), "lies outside the workspace", "add --in-place to change it there")
    metadata = edited(read_header(path).metadata, changes)
    require_space(path.parent, path.stat().st_size, "the edited file")
    with atomic_path(path) as temporary:
        rewrite_metadata(path, temporary, metadata)
        hashes = hash_adapter(temporary)
        if adapter.tensor_sha256 not in ("", hashes.tensor_sha256):
            raise Damaged(str(path), f"of adapter {adapter.name} has changed meanwhile", "try again")
    status = path.stat()
    row: dict[str, Any] = {
        "tensor_sha256": hashes.tensor_sha256, "file_sha256": hashes.sha256, "size": status.st_size,
        "mtime_ns": status.st_mtime_ns, "file_state": FileState.OK,
    }  # fmt: skip
    if changes.trigger_words is not None:
        row["trigger_words"] = united([changes.trigger_words])
    if changes.licence is not None:
        row["licence"] = changes.licence
    return ws.catalog.update(Adapter, adapter.id, **row)


def xray(ws: "Workspace", keys: Sequence[str], *, base: str = "") -> dict[str, Any]:
    """What adapters change, by block and module, and how alike they are, as JSON types.

    Returns:
        {"adapters": [{"id", "name", "family", "norm", "components", "dead", "warnings", "blocks",
        "modules"}], "similarity": [{"a", "b", "overall", "shared", "blocks", "modules"}]}; blocks are in the
        order in which data takes them. `registry.formats.operations.xray` says what the figures mean.

    Raises:
        NotFound: no such adapter or base, or a file is gone.
        BadInput: families differ, or a method needs the base.
    """
    loaded = [_load(ws, key) for key in keys]
    if len(loaded) > 1:
        merging.one_family([Ingredient(item.adapter.name, item.form) for item in loaded])
    weights = _weights(ws, base, loaded)
    changes = [xraying.changes_of(item.form, weights) for item in loaded]
    adapters = [
        {"id": item.adapter.id, "name": item.adapter.name} | xraying.xray(item.form, change).to_dict()
        for item, change in zip(loaded, changes, strict=True)
    ]
    pairs = [
        {"a": loaded[a].adapter.name, "b": loaded[b].adapter.name}
        | xraying.similarity(loaded[a].form.family, changes[a], changes[b]).to_dict()
        for a, b in combinations(range(len(loaded)), 2)
    ]
    return {"adapters": adapters, "similarity": pairs}


def _load(ws: "Workspace", key: str, strength: Strength | None = None) -> _Loaded:
    adapter = ws.catalog.get(Adapter, key)
    path, peft = require_file(ws, adapter), PeftConfig.from_json(adapter.metadata.get("peft"))
    form, facts, _ = load_adapter(path, adapter.family, peft)
    return _Loaded(adapter, form, facts.dtype, strength or Strength())


def _dtype(wanted: str, loaded: Sequence[_Loaded]) -> str:
    return wanted or common([item.dtype for item in loaded]) or "fp32"


def _weights(ws: "Workspace", base: str, loaded: Sequence[_Loaded]) -> BaseWeights | None:
    """The base that DoRA and OFT need: the named one, else the adapters' own where they have the same."""
    needed = any(not hasattr(f, "delta") for item in loaded for f in item.form.others.values())
    key = base or (common([item.adapter.base_id for item in loaded]) if needed else "")
    if not key:
        return None
    record = ws.catalog.get(Base, key)
    if record.family != loaded[0].form.family:
        wrong = f"is {record.family}, adapter {loaded[0].adapter.name} is for {loaded[0].form.family}"
        raise BadInput(f"base {record.name}", wrong, "name a base of its family")
    return _open(ws, record)


def _open(ws: "Workspace", base: Base) -> BaseWeights:
    path = check_available(ws, base)
    return BaseWeights(path, base.family, ws.resolve(base.config) if base.config else None)


def _open_any(ws: "Workspace", tuned: str, base: Base, ours: BaseWeights) -> BaseWeights:
    """A fine-tuned model: a base of the catalog, or a folder or file of the family of `base`."""
    path = expand_home(tuned)
    known = ws.catalog.find(Base, tuned) if not path.exists() else None
    if known is not None:
        family, found = known.family, _open(ws, known)
    else:
        config = ws.resolve(base.config) if base.config else ours.path
        family = detect_base(tuned, str(config), family=base.family).family
        found = BaseWeights(path, family)
    if family != base.family:
        wrong = f"is {family}, base {base.name} is {base.family}"
        raise BadInput(str(found.path), wrong, "name its own base")
    return found
