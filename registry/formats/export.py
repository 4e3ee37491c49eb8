"""Writing an adapter for other tools, and proving what was written before anyone sees it.

The file is written to a temporary, read back by our own parser, and its weight change compared with the
source module by module; only then it gets its name.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from registry.errors import BadInput, StudioError
from registry.files import atomic_file, atomic_folder, atomic_path, require_space, write_json
from registry.formats import diffusers, kohya, lycoris, lycoris_tools, peft, words
from registry.formats.convert import ToLora, converted
from registry.formats.families import family_format
from registry.formats.header import read_header, shown
from registry.formats.inspect import AdapterFacts
from registry.formats.internal import AdapterForm
from registry.formats.load import load_adapter
from registry.formats.metadata import with_hashes
from registry.formats.peft_config import ASSUMED, PeftConfig
from registry.formats.reading import PEFT_METADATA, read
from registry.formats.tensors import Array, cast, read_tensors, save
from registry.formats.tools import TOOLS, Judge, Proof, Reader, Reading, ToolReport
from registry.formats.tools_flow import FLUX_TOOLS, SD35_TOOLS
from registry.hashing import hash_adapter

LAYOUTS = ("auto", "kohya", "diffusers", "peft", "embedding")
# Relative error that rounding may cost: two factors of 24, 11 and 8 significant bits, with room for the small
# values that fp16 keeps with fewer. Above it the export is refused.
TOLERANCE = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 2e-2}
FAMILY_TOOLS: dict[str, dict[str, Reader]] = {"sd35": SD35_TOOLS, "flux1": FLUX_TOOLS}  # else TOOLS


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """What A1111, Forge, InvokeAI and SwarmUI read beside the file: `<stem>.json` and `<stem>.png`."""

    trigger_words: tuple[str, ...] = ()
    weight: float = 1.0
    negative: str = ""
    notes: str = ""
    description: str = ""
    picture: Path | None = None


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was written, and for each tool whether it will load."""

    path: str
    files: tuple[str, ...]
    layout: str
    family: str
    dtype: str
    bytes: int
    sha256: str  # of the file; "" for a folder
    tensor_sha256: str
    modules: int
    matched: int  # read back with the right weight change
    worst_error: float  # largest relative error of a module's weight change
    tolerance: float
    tools: tuple[ToolReport, ...]
    notes: tuple[str, ...] = field(default=())
    converted: dict[str, Any] = field(
        default_factory=dict[str, Any]
    )  # what making LoRA of it cost; {} = nothing

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON types."""
        return json.loads(json.dumps(asdict(self)))


def export_adapter(
    source: Path,
    out: Path,
    layout: str = "auto",
    *,
    metadata: Mapping[str, str] | None = None,
    dtype: str = "",
    family: str = "",
    sidecar: Sidecar | None = None,
    overwrite: bool = False,
    convert: ToLora | None = None,
    strength: PeftConfig | None = None,
) -> ExportReport:
    """Write the adapter in `source` to `out`, read it back and prove it.

    Args:
        source: An adapter file in any layout that we read.
        out: File to write; a name without suffix gets `.safetensors`. A folder for "peft".
        layout: "kohya", "diffusers", "peft", or "auto": what loads in every tool for the family.
        metadata: Metadata to write; see `metadata.training_metadata`. Hashes are added.
        dtype: "fp32", "fp16", "bf16", or "" = as stored in `source`.
        family: Of the adapter; "" = as inspected.
        sidecar: Also write `<stem>.json` and `<stem>.png`; None = neither.
        overwrite: Replace existing files.
        convert: Make LoRA of every other method first; None = refuse what the layout cannot hold.
        strength: What the catalog knows of it, for a file of PEFT's; None = what lies beside the file.

    Raises:
        BadInput: a file is unsound, cannot be converted, or stands in the way.
        StudioError: the disk is full, or the written file is not what it should be (it is removed).
    """
    if layout not in LAYOUTS:
        raise BadInput(f"format {layout!r}", "is unknown", f"use one of {', '.join(LAYOUTS)}")
    form, facts, header = load_adapter(source, family, strength)
    _require_family(source, form, facts)
    if layout == "auto":
        layout = family_format(form.family).auto_layout if form.everything else "embedding"
    if layout == "embedding":
        return export_words(
            form, _target(out, layout), dtype or facts.dtype, metadata or {}, overwrite=overwrite
        )
    if not form.everything:
        raise BadInput(str(source), "holds new words alone", "export it with --format embedding")
    form, cost = converted(form, convert) if convert else (form, None)
    _require_no_biases(form, layout)
    dtype = dtype or facts.dtype
    out = _target(out, layout)
    extra = _sidecar_files(out, sidecar) if layout != "peft" else []
    _refuse_existing([out, *extra], overwrite)
    require_space(
        out.parent, 2 * sum(info.end - info.start for info in header.tensors.values()), "the export"
    )
    judge = Judge(form, TOLERANCE.get(dtype, 0.0))
    ours = {diffusers.ADAPTER_METADATA, PEFT_METADATA}  # of the file we read, not of the one we write
    texts = {k: v for k, v in (metadata or {}).items() if k not in ours}
    if layout == "peft":
        proof, tools = _write_peft(form, out, dtype, texts, judge)
        files = sorted(path for path in out.rglob("*") if path.is_file())
        main = out / peft.WEIGHTS if (out / peft.WEIGHTS).exists() else files[-1]
    else:
        proof, tools = _write_file(form, out, layout, dtype, texts, judge)
        files, main = [out], out
        if sidecar:
            files += _write_sidecar(out, sidecar, family_format(form.family).sd_version)
    hashes = hash_adapter(main)
    return ExportReport(
        path=str(out),
        files=tuple(str(path) for path in files),
        layout=layout,
        family=form.family,
        dtype=dtype,
        bytes=sum(path.stat().st_size for path in files),
        sha256=hashes.sha256 if main == out else "",
        tensor_sha256=hashes.tensor_sha256,
        modules=proof.modules,
        matched=proof.matched,
        worst_error=proof.worst_error,
        tolerance=TOLERANCE[dtype],
        tools=tools,
        notes=(
            *(cost.notes if cost else ()),
            *_notes(layout, form),
            *((ASSUMED,) if facts.strength_assumed else ()),
        ),
        converted=cost.to_dict(modules=False) if cost else {},
    )


def _write_file(
    form: AdapterForm, out: Path, layout: str, dtype: str, metadata: Mapping[str, str], judge: Judge
) -> tuple[Proof, tuple[ToolReport, ...]]:
    module = kohya if layout == "kohya" else diffusers
    tensors, extra = module.write(form)
    tensors |= words.bundle(form.words, form.family) if layout == "kohya" else {}
    if form.others or form.biases:
        tensors |= lycoris.write_kohya(form) if layout == "kohya" else lycoris.write_diffusers(form)
    stored = lycoris_tools.stored(tensors, dtype)
    with atomic_path(out) as temporary:
        save(temporary, stored, with_hashes(stored, {"format": "pt", **metadata, **extra}))
        header = read_header(temporary)
        kept, back = words.split(read_tensors(temporary, header))
        again = read(back, header.metadata, form.family)
        proof = lycoris_tools.prove(form, again, judge)
        _require_proof(proof, judge, out, dtype)
        _require_biases(form, again, out, dtype)
        for word in form.words if layout == "kohya" else ():
            _require_word(word, form.words[word], kept.get(word, {}), out, dtype)
    names = family_format(form.family)
    reports = (
        judge.report(name, reader(back, header.metadata, names, form.modules))
        for name, reader in FAMILY_TOOLS.get(form.family, TOOLS).items()
    )
    return proof, lycoris_tools.with_others(tuple(reports), form, layout)


def _write_peft(
    form: AdapterForm, out: Path, dtype: str, metadata: Mapping[str, str], judge: Judge
) -> tuple[Proof, tuple[ToolReport, ...]]:
    others = bool(form.others)
    base_name = metadata.get("studio.base_name", "")
    parts = lycoris_tools.write_peft(form) if others else peft.write(form, base_name)
    with atomic_folder(out) as folder:
        for name, (tensors, config) in parts.items():
            place = folder / name
            place.mkdir(exist_ok=True)
            stored: dict[str, NDArray[np.generic]] = lycoris_tools.stored(tensors, dtype)
            save(place / peft.WEIGHTS, stored, with_hashes(stored, {"format": "pt", **metadata}))
            write_json(place / peft.CONFIG, config)
        back = peft.read_folder(folder, form.family)
        proof = lycoris_tools.prove(form, back, judge)
        _require_proof(proof, judge, out, dtype)
    if others:
        report = ToolReport("PEFT", "loads", proof.modules, proof.matched, (), proof.worst_error)
        return proof, (report,)
    return proof, (judge.report("PEFT", Reading(back.modules)),)


def export_words(
    form: AdapterForm, out: Path, dtype: str, metadata: Mapping[str, str], *, overwrite: bool
) -> ExportReport:
    """The new words of an adapter as embedding files: at `out`, or `<stem>-<word>` for each of several.

    Raises:
        BadInput: there are none, or a file stands in the way.
        StudioError: the disk is full, or what was written is not what it should be (it is removed).
    """
    if not form.words:
        raise BadInput("adapter", "has no new words", "use another format")
    several = len(form.words) > 1
    paths = {word: out.with_name(f"{out.stem}-{word}.safetensors") if several else out for word in form.words}
    _refuse_existing([*paths.values()], overwrite)
    for word, path in paths.items():
        stored = cast(words.embedding(form.words[word], form.family), dtype)
        with atomic_path(path) as temporary:
            save(temporary, stored, with_hashes(stored, {"format": "pt", **metadata}))
            back = words.read_embedding(read_tensors(temporary, read_header(temporary)))
            _require_word(word, form.words[word], back, path, dtype)
    first = next(iter(paths.values()))
    hashes = hash_adapter(first)
    return ExportReport(
        path=str(first),
        files=tuple(map(str, paths.values())),
        layout="embedding",
        family=form.family,
        dtype=dtype,
        bytes=sum(path.stat().st_size for path in paths.values()),
        sha256=hashes.sha256,
        tensor_sha256=hashes.tensor_sha256,
        modules=0,
        matched=0,
        worst_error=0.0,
        tolerance=TOLERANCE[dtype],
        tools=(),
        notes=("a file's name is the word that calls it; rename it as you like",),
    )


def _require_word(
    word: str, ours: Mapping[str, Array], theirs: Mapping[str, Array], out: Path, dtype: str
) -> None:
    if words.worst_error(ours, theirs) > TOLERANCE[dtype]:
        raise StudioError(str(out), f"lost the vectors of {word} on the way", "please report this")


def _require_no_biases(form: AdapterForm, layout: str) -> None:
    if form.biases and layout != "kohya":
        wrong = f"cannot hold changes of biases ({next(iter(form.biases))})"
        raise BadInput(
            f"the {layout} layout", wrong, "use --format kohya, or leave them out with --convert lora"
        )


def _require_biases(form: AdapterForm, again: AdapterForm, out: Path, dtype: str) -> None:
    for module, wanted in form.biases.items():
        got = again.biases.get(module)
        size = max(float(np.abs(wanted).max()), 1e-12)
        if (
            got is None
            or got.shape != wanted.shape
            or float(np.abs(got - wanted).max()) > TOLERANCE[dtype] * size
        ):
            raise StudioError(str(out), f"lost the change of the bias of {module}", "use fp32")


def _require_proof(proof: Proof, judge: Judge, out: Path, dtype: str) -> None:
    if proof.missing:
        raise StudioError(str(out), f"lost module {proof.missing[0]} on the way", "please report this")
    if proof.matched < proof.modules:
        raise StudioError(
            str(out),
            f"would change module {proof.worst_module} by {proof.worst_error:.1%} in {dtype}, "
            f"more than {judge.tolerance:.1%}",
            "use fp32" if dtype != "fp32" else "please report this",
        )


def _require_family(source: Path, form: AdapterForm, facts: AdapterFacts) -> None:
    if not form.family:
        do = "say what it is for with studio adapters set-family"
        raise BadInput(str(source), f"is of no known family ({facts.reason})", do)
    if not form.everything and not form.words:
        raise BadInput(str(source), "has no adapter weights", "choose another file")


def _target(out: Path, layout: str) -> Path:
    if layout == "peft":
        if out.suffix == ".safetensors":
            raise BadInput(str(out), "names a file, the peft format is a folder", "leave the suffix away")
        return out
    if out.is_dir():
        raise BadInput(str(out), "is a folder", "name the file to write")
    if not out.suffix or out.suffix[1:].isdigit():  # "ink-v1.5" has no suffix
        return out.with_name(out.name + ".safetensors")
    if out.suffix != ".safetensors":
        raise BadInput(
            str(out), f"ends in {out.suffix}", "end it in .safetensors, which is what tools look for"
        )
    return out


def _sidecar_files(out: Path, sidecar: Sidecar | None) -> list[Path]:
    if sidecar is None:
        return []
    files = [out.with_suffix(".json")]
    if sidecar.picture is not None and sidecar.picture.is_file():
        files.append(out.with_suffix(".png"))
    return files


def _refuse_existing(files: list[Path], overwrite: bool) -> None:
    for path in files:
        if not path.exists() and not path.is_symlink():
            continue
        if path.is_dir():
            _require_replaceable(path, overwrite)
        elif not overwrite:
            raise BadInput(str(path), "exists already", "choose another name, or add --overwrite")


def _require_replaceable(folder: Path, overwrite: bool) -> None:
    """A folder is replaced as a whole, so it must be empty or hold an adapter in peft layout alone."""
    names = {peft.WEIGHTS, peft.CONFIG}
    inside = [path for path in folder.rglob("*") if path.is_file() or path.is_symlink()]
    if folder.is_symlink() or any(path.name not in names for path in inside):
        raise BadInput(str(folder), "is a folder with other files in it", "name a new folder")
    if inside and not overwrite:
        raise BadInput(str(folder), "exists already", "choose another name, or add --overwrite")


def _write_sidecar(out: Path, sidecar: Sidecar, sd_version: str) -> list[Path]:
    files = _sidecar_files(out, sidecar)
    values = {
        "description": sidecar.description,
        "sd version": sd_version,
        "activation text": ", ".join(sidecar.trigger_words),
        "preferred weight": sidecar.weight,
        "negative text": sidecar.negative,
        "notes": sidecar.notes,
    }
    write_json(files[0], values)
    if sidecar.picture is not None and len(files) > 1:
        with Image.open(sidecar.picture) as picture, atomic_file(files[1]) as stream:
            # Pixels only: the preview's own metadata has prompts.
            picture.convert("RGB").save(stream, "PNG")
    return files


def _notes(layout: str, form: AdapterForm) -> tuple[str, ...]:
    names = family_format(form.family)
    notes = [*lycoris_tools.notes(form, layout)]
    if form.ignored:
        few = ", ".join(map(shown, form.ignored[:3]))
        notes.append(f"{len(form.ignored)} keys of the source are not understood and left out: {few}")
    if form.words and layout == "kohya":
        notes.append("A1111 and Forge read the new words from the file; for others use --format embedding")
    elif form.words:
        notes.append("the new words are left out; write them with --format embedding")
    if layout == "diffusers" or (layout == "peft" and form.modules):
        notes.append(
            "alpha / rank is folded into lora_B: every tool applies the trained strength at weight 1"
        )
    if layout == "diffusers" and "unet" in form.components and form.modules:
        notes.append("ComfyUI and Forge ignore attention under these names; use kohya for them")
    if layout == "peft":
        texts = [name for name in form.components if name != names.denoiser]
        notes += [f'text encoder: PeftModel.from_pretrained({t}, FOLDER, subfolder="{t}")' for t in texts]
    alphas = {factors.alpha for factors in form.modules.values()}
    if layout == "kohya" and names.one_alpha and len(alphas) > len(form.components):
        notes.append("alphas are levelled within a component, the difference is in lora_up")
    return tuple(notes)
