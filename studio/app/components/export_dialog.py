"""Export: write the file, read it back, say which tools load it."""

from dataclasses import dataclass

import streamlit as st

from registry.files import file_stem
from registry.records import Adapter
from studio.app import shell
from studio.app.words import md, size

LAYOUTS = {
    "auto": "Works everywhere (recommended)",
    "kohya": "kohya: A1111, Forge, ComfyUI",
    "diffusers": "diffusers",
    "peft": "PEFT folder",
}
DTYPES = {
    "": "As stored",
    "fp32": "fp32: exact, largest",
    "bf16": "bf16: half the size",
    "fp16": "fp16: half the size",
}


@dataclass(frozen=True)
class Tool:
    """A program and the layouts it loads."""

    name: str
    layouts: tuple[str, ...]
    where: str


TOOLS = (
    Tool("ComfyUI", ("kohya", "diffusers"), "models/loras/"),
    Tool("A1111 and Forge", ("kohya",), "models/Lora/"),
    Tool("kohya sd-scripts", ("kohya",), "network_weights"),
    Tool("diffusers", ("kohya", "diffusers"), "load_lora_weights"),
    Tool("PEFT", ("peft",), "PeftModel.from_pretrained"),
)


@st.dialog("Export", width="medium", icon=":material/ios_share:")
def export_dialog(adapter: Adapter) -> None:
    """Choose a layout, write, see the proof, save the file."""
    layout = st.radio(
        "For which program", list(LAYOUTS), format_func=LAYOUTS.__getitem__, key="export-layout"
    )
    name = st.text_input("File name", file_stem(adapter.name), max_chars=80, key="export-name")
    with st.expander("More"):
        dtype = st.selectbox("Precision", list(DTYPES), format_func=DTYPES.__getitem__, key="export-dtype")
        publish = st.toggle(
            "For publishing",
            key="export-publish",
            help="Leaves captions, folder names and paths out of the file.",
        )
    tool_table(layout)
    if st.button("Write and check", type="primary", key="export-go"):
        with shell.guarded():
            write(adapter, layout, name or adapter.name, dtype, publish=publish)


def tool_table(layout: str) -> None:
    """Which tool loads this layout, and where the file goes."""
    real = "kohya" if layout == "auto" else layout
    rows = [
        {
            "Program": tool.name,
            "Loads it": "yes" if real in tool.layouts else "no",
            "Where it goes": tool.where,
        }
        for tool in TOOLS
    ]
    st.table(rows, border="horizontal", hide_index=True)


def write(adapter: Adapter, layout: str, name: str, dtype: str, *, publish: bool) -> None:
    """Write into exports/ and show what was read back."""
    from studio.adapters import export

    workspace = shell.workspace()
    stem = file_stem(name.removesuffix(".safetensors"))
    out = workspace.home / "exports" / (stem if layout == "peft" else f"{stem}.safetensors")
    with st.spinner("Writing, and reading it back"):
        report = export(
            workspace, adapter.id, layout, out, dtype=dtype, publish=publish, overwrite=True
        ).to_dict()
    st.success(
        f"{report['matched']} of {report['modules']} parts read back, largest difference "
        f"{report['worst_error']:.1e}. The file loads as it should.",
        icon=":material/verified:",
    )
    if out.is_file():
        st.link_button(
            f"Save {md(out.name)} ({size(out.stat().st_size)})",
            f"/files/export/{out.name}",
            icon=":material/download:",
        )
    else:
        st.caption("A folder cannot be saved through the browser; it is here:")
        st.code(str(out), language=None)
