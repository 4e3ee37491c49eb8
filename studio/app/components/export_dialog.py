"""Export: for which program, how exact, and the proof of what was written."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from registry.errors import StudioError
from registry.files import file_stem
from registry.formats.header import read_header
from registry.records import Adapter
from studio.app import shell
from studio.app.components.cards import method_label
from studio.app.components.export_report import proof
from studio.app.components.needed_base import base_field
from studio.app.words import md, size
from studio.evidence.evaluations import memorised
from studio.exporting import WITH_BASE
from trainers.families import FAMILIES

if TYPE_CHECKING:
    from registry.formats.convert import ToLora

LAYOUTS = {
    "auto": "Most programs (recommended)",
    "kohya": "A1111, Forge, ComfyUI, InvokeAI",
    "diffusers": "diffusers",
    "peft": "PEFT",
    "embedding": "New words alone",
}
CAPTIONS = {
    "auto": "Chooses the layout that loads in the most programs",
    "kohya": "One file in kohya's layout",
    "diffusers": "One file, for Python",
    "peft": "A folder, for Python",
    "embedding": "An embedding for the folder of embeddings (textual inversion)",
}
FLOW_CAPTIONS = {
    "kohya": "One file in kohya's layout; also for ComfyUI where the recommended one is not taken",
    "diffusers": "One file, for Python and for the programs that read its names",
}
DTYPES = {
    "": "As it is",
    "fp32": "Exact, largest (fp32)",
    "bf16": "Half the size, coarser (bf16)",
    "fp16": "Half the size, fine for most (fp16)",
}
PLAIN = ("lora", "embedding", "")  # methods that every layout carries
WORDS = ("bundle_emb.", ".new_tokens.")  # in the names of tensors of new words


@dataclass(frozen=True)
class Conversion:
    """How the person wants another method made into LoRA."""

    rank: int = 0
    max_error: float = 0.0
    base: str = ""


@st.dialog("Export", width="medium", icon=":material/ios_share:")
def export_dialog(adapter: Adapter) -> None:
    """Choose, write, see the proof, save the file."""
    export_form(adapter)


def export_form(adapter: Adapter) -> None:
    """What the dialog shows."""
    if warning := memorised(shell.workspace(), adapter):
        st.warning(md(warning), icon=":material/content_copy:")
    layouts = _layouts(adapter)
    says = CAPTIONS | (FLOW_CAPTIONS if adapter.family in FAMILIES and FAMILIES[adapter.family].flow else {})
    layout = st.radio(
        "For which program",
        layouts,
        format_func=LAYOUTS.__getitem__,
        captions=[says[name] for name in layouts],
        key="export-layout",
    )
    convert = None if layout == "embedding" else conversion_fields([adapter])
    name = st.text_input("File name", file_stem(adapter.name), max_chars=80, key="export-name")
    with st.expander("More"):
        dtype = st.selectbox("Precision", list(DTYPES), format_func=DTYPES.__getitem__, key="export-dtype")
        publish = st.toggle(
            "For publishing",
            key="export-publish",
            help="Leaves captions, prompts, notes, folder names and consent out of the file.",
        )
        thumbnail = st.toggle(
            "Put the preview into the file", bool(adapter.preview), key="export-thumbnail",
            disabled=not adapter.preview, help="A small picture that ComfyUI, Forge and SwarmUI show.",
        )  # fmt: skip
    if st.button("Write and check", type="primary", key="export-go"):
        with shell.guarded():
            out = _place(name or adapter.name, layout)
            options = {"dtype": dtype, "publish": publish, "thumbnail": thumbnail}
            write(adapter, layout, out, options, settings_of(adapter, convert))


def conversion_fields(adapters: Sequence[Adapter], *, key: str = "export") -> Conversion | None:
    """Whether and how to make LoRA of those that are none; the base where a method needs one.

    None where there is nothing to convert, or nobody wants it.
    """
    others = [adapter for adapter in adapters if adapter.method not in PLAIN]
    if not others:
        return None
    methods = ", ".join(dict.fromkeys(md(method_label(adapter.method)) for adapter in others))
    if len(adapters) == 1:
        st.caption(f"It is a {methods}, which few programs load. As a LoRA all of them do.")
        label = "Make a LoRA of it"
    else:
        st.caption(
            f"{len(others):,} of {len(adapters):,} are {methods}: few programs load that, all load LoRA."
        )
        label = "Make LoRA of those"
    if not st.toggle(label, True, key=f"{key}-convert"):
        return None
    exact = {
        0.001: "0.1 %",
        0.01: "1 % (recommended)",
        0.05: "5 %, smaller file",
        0.0: "set the rank instead",
    }
    error = st.selectbox("Each part may be off by", list(exact), 1, exact.__getitem__, key=f"{key}-error")
    rank = 0
    if not error:
        largest = min(4096, max(16, *(adapter.rank for adapter in others)))
        rank = int(st.number_input("Rank", 1, 4096, largest, key=f"{key}-rank"))
    homeless = [adapter for adapter in others if len(adapters) == 1 or not adapter.base_id]
    return Conversion(rank, error or 0.0, base_field(homeless, key=f"{key}-base"))


def settings_of(adapter: Adapter, wanted: Conversion | None) -> "ToLora | None":
    """How this adapter is converted; None = it is written as it is.

    Raises:
        NotFound: its base or the base's files are not there.
        BadInput: the base is of another family.
    """
    if wanted is None or adapter.method in PLAIN:
        return None
    from studio.exporting import conversion

    base = wanted.base if adapter.method in WITH_BASE else ""
    return conversion(
        shell.workspace(), adapter.id, "lora", rank=wanted.rank, max_error=wanted.max_error, base=base
    )


def _layouts(adapter: Adapter) -> list[str]:
    """Layouts that it can have: embeddings only where there are new words."""
    if adapter.method == "embedding":
        return ["embedding"]
    names: Mapping[str, object] = {}
    with suppress(StudioError, OSError):
        names = read_header(shell.workspace().resolve(adapter.path)).tensors
    words = any(mark in name for name in names for mark in WORDS)
    return [name for name in LAYOUTS if words or name != "embedding"]


def _place(name: str, layout: str) -> Path:
    stem = file_stem(name.removesuffix(".safetensors"))
    return shell.workspace().home / "exports" / (stem if layout == "peft" else f"{stem}.safetensors")


def write(
    adapter: Adapter, layout: str, out: Path, options: Mapping[str, object], convert: "ToLora | None" = None
) -> None:
    """Write into exports/ and show what was read back."""
    from studio.adapters import export

    with st.spinner("Writing, and reading it back"):
        report = export(
            shell.workspace(), adapter.id, layout, out, overwrite=True, convert=convert,
            dtype=str(options["dtype"]), publish=bool(options["publish"]),
            thumbnail=bool(options["thumbnail"]),
        )  # fmt: skip
    proof(report.to_dict())
    for path in map(Path, report.files if out.suffix == ".safetensors" else ()):
        if path.suffix == ".safetensors":
            label = f"Save {md(path.name)} ({size(path.stat().st_size)})"
            st.link_button(label, f"/files/export/{path.name}", icon=":material/download:")
    if out.is_dir():
        st.caption("A folder cannot be saved through the browser; it is here:")
        st.code(str(out), language=None, wrap_lines=True)
