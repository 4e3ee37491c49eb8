"""Export of several adapters: into one folder, each read back, and as a zip where that is not too large."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from registry.files import file_stem
from registry.records import Adapter, now
from studio.app import shell
from studio.app.components.export_dialog import (
    DTYPES,
    LAYOUTS,
    Conversion,
    conversion_fields,
    settings_of,
)
from studio.app.words import md, plural, size

if TYPE_CHECKING:
    from registry.formats.convert import ToLora

DOWNLOAD = 500_000_000  # bytes; larger ones are taken from their folder


@st.dialog("Export several", width="medium", icon=":material/ios_share:")
def export_dialog(ids: Sequence[str]) -> None:
    """Layout and folder, then what was written."""
    export_form(ids)


def export_form(ids: Sequence[str]) -> None:
    """The dialog's content."""
    st.caption(f"{plural(len(ids), 'adapter')}: written, read back and compared.")
    layout = st.radio(
        "For which program", list(LAYOUTS), format_func=LAYOUTS.__getitem__, key="exports-layout"
    )
    adapters = shell.workspace().catalog.list(Adapter, id=tuple(ids))
    convert = None if layout == "embedding" else conversion_fields(adapters, key="exports")
    name = st.text_input("Folder", f"adapters-{now():%Y-%m-%d}", max_chars=80, key="exports-name")
    with st.expander("More"):
        dtype = st.selectbox("Precision", list(DTYPES), format_func=DTYPES.__getitem__, key="exports-dtype")
        publish = st.toggle(
            "For publishing",
            key="exports-publish",
            help="Leaves captions, folder names and paths out of the files.",
        )
    if st.button("Write and check", type="primary", key="exports-go"):
        folder = shell.workspace().home / "exports" / file_stem(name or "adapters")
        with shell.guarded():
            _write(ids, layout, folder, dtype, convert, publish=publish)


def _write(
    ids: Sequence[str], layout: str, folder: Path, dtype: str, convert: Conversion | None, *, publish: bool
) -> None:
    from studio.adapters_many import export_many, pack

    workspace = shell.workspace()

    def how(id: str) -> "ToLora | None":
        adapter = workspace.catalog.get(Adapter, id)
        if convert is not None and adapter.base_id:  # the field is about those that have none
            return settings_of(adapter, replace(convert, base=""))
        return settings_of(adapter, convert)

    with st.spinner("Writing, and reading back"):
        report = export_many(
            workspace, ids, layout, folder, conversion=how, dtype=dtype, publish=publish, overwrite=True
        )
    if report.done:
        st.success(f"{plural(len(report.done), 'adapter')} written and proven", icon=":material/verified:")
    for id, line in report.failed:
        name = found.name if (found := workspace.catalog.find(Adapter, id)) else id
        st.markdown(f":orange[:material/warning:] **{md(name)}**: {md(line)}")
    if not report.done:
        return
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if total <= DOWNLOAD:
        with st.spinner("Making one file of them"):
            packed = pack(folder)
        label = f"Save {md(packed.name)} ({size(total)})"
        st.link_button(label, f"/files/export/{packed.name}", icon=":material/download:")
    st.caption("They are in this folder:")
    st.code(str(folder), language=None, wrap_lines=True)
