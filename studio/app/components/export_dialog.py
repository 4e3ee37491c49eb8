"""Export: write the file, read it back, say which tools load it."""

import streamlit as st

from registry.files import file_stem
from registry.records import Adapter
from studio.app import shell
from studio.app.words import md, printable, size

LAYOUTS = {
    "auto": "Works everywhere (recommended)",
    "kohya": "kohya: A1111, Forge, ComfyUI",
    "diffusers": "diffusers",
    "peft": "PEFT folder",
}
VERDICTS = {"loads": "yes", "partly": "in part", "no": "no"}
DTYPES = {
    "": "As stored",
    "fp32": "fp32: exact, largest",
    "bf16": "bf16: half the size",
    "fp16": "fp16: half the size",
}


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
    if st.button("Write and check", type="primary", key="export-go"):
        with shell.guarded():
            write(adapter, layout, name or adapter.name, dtype, publish=publish)


def write(adapter: Adapter, layout: str, name: str, dtype: str, *, publish: bool) -> None:
    """Write into exports/ and show what was read back."""
    from studio.adapters import export

    workspace = shell.workspace()
    stem = file_stem(name.removesuffix(".safetensors"))
    out = workspace.home / "exports" / (stem if layout == "peft" else f"{stem}.safetensors")
    with st.spinner("Writing, and reading it back"):
        report = export(workspace, adapter.id, layout, out, dtype=dtype, publish=publish, overwrite=True)
    st.success(
        f"{report.matched} of {report.modules} parts read back, {exactness(report.worst_error)}",
        icon=":material/verified:",
    )
    rows = [
        {
            "Program": tool.tool,
            "Loads it": VERDICTS[tool.verdict],
            "Parts": f"{tool.matched} of {tool.modules}",
            "": printable(tool.note),
        }
        for tool in report.tools
    ]
    st.table(rows, border="horizontal", hide_index=True)
    for line in report.notes:
        st.caption(md(line))
    if out.is_file():
        label = f"Save {md(out.name)} ({size(out.stat().st_size)})"
        st.link_button(label, f"/files/export/{out.name}", icon=":material/download:")
    else:
        st.caption("A folder cannot be saved through the browser; it is here:")
        st.code(str(out), language=None)


def exactness(error: float) -> str:
    """How far the file is from the adapter, in words."""
    return "each exactly as it was" if error == 0 else f"each within {error:.1e} of what it was"
