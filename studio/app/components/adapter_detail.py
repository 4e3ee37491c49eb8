"""One adapter: what it is, what to do with it, where it comes from, what it changes, and its file."""

import streamlit as st

from registry.records import Adapter, Base, FileState, Run
from studio.app import shell
from studio.app.components.adapter_file import banner, files, seen_state
from studio.app.components.adapter_head import head
from studio.app.components.bake_dialog import bake_dialog
from studio.app.components.cards import adapter_preview, film_rows, sample_cards
from studio.app.components.chain import chain
from studio.app.components.edit_dialog import edit_dialog
from studio.app.components.evidence import evidence_of_adapter
from studio.app.components.export_dialog import export_dialog
from studio.app.components.export_report import exported
from studio.app.components.gallery import Card, film, gallery
from studio.app.components.merge_dialog import merge_dialog
from studio.app.components.resize_dialog import resize_dialog
from studio.app.components.xray_panel import xray_panel
from studio.app.words import ago, md

SAMPLES = 12  # pictures shown of those made with it
CHANGES = {
    "Make it smaller": resize_dialog,
    "Merge with others": merge_dialog,
    "Put it into a base": bake_dialog,
    "Edit what the file says": edit_dialog,
}


def show(adapter: Adapter) -> None:
    """The whole page."""
    if st.button("All adapters", icon=":material/arrow_back:", type="tertiary"):
        shell.stay()
    shell.heading(md(adapter.name))
    if adapter.trashed_at is not None:
        in_trash(adapter)
    banner(adapter)
    picture, facts = st.columns([2, 3], gap="medium")
    with picture:
        preview(adapter)
        actions(adapter)
    with facts:
        head(adapter)
    chain(adapter)
    learned(adapter)
    made_with(adapter)
    if adapter.trashed_at is None and adapter.family:
        evidence_of_adapter(adapter)
    xray_panel(adapter)
    exported(adapter)
    files(adapter)


def preview(adapter: Adapter) -> None:
    """Its picture; a click shows it at full size."""
    url = adapter_preview(adapter)
    card = Card(
        id=adapter.id,
        images=(url,) if url else (),
        zoom=adapter_preview(adapter, full=True),
        alt=f"Preview of {adapter.name}",
        zoom_text=adapter.name,
        placeholder="no preview",
    )
    gallery([card], key="adapter-picture", opens=False, least=0)


def in_trash(adapter: Adapter) -> None:
    """Say so, and offer the way back."""
    from studio.adapters import restore

    with st.container(key="panel-trashed", horizontal=True, vertical_alignment="center"):
        st.markdown(f"In the trash since {ago(adapter.trashed_at)}.", width="stretch")
        if st.button("Take it out", icon=":material/restore_from_trash:", type="primary"):
            with shell.guarded():
                restore(shell.workspace(), adapter.id)
                shell.note(f"{adapter.name} is back")
                shell.stay(adapter=adapter.id)


def actions(adapter: Adapter) -> None:
    """What one does with an adapter."""
    if adapter.trashed_at is not None:
        return
    gone = seen_state(adapter) == FileState.MISSING
    with st.container(horizontal=True):
        if st.button("Make pictures", type="primary", icon=":material/brush:", disabled=gone):
            shell.go("sample", adapter=adapter.id)
        if st.button("Compare", icon=":material/compare:", disabled=gone):
            shell.go("compare", new="1", adapter=adapter.id)
        if st.button("Export", icon=":material/ios_share:", disabled=gone):
            export_dialog(adapter)
        change = st.menu_button(
            "Change it", list(CHANGES), icon=":material/tune:", key="adapter-change", disabled=gone
        )
        if change:
            CHANGES[change](adapter)
        if st.button("To the trash", icon=":material/delete:"):
            trash(adapter)


def trash(adapter: Adapter) -> None:
    """Undoable, so it needs no question."""
    from studio.adapters import trash as put_into_trash

    with shell.guarded():
        put_into_trash(shell.workspace(), adapter.id)
        shell.note(f"{adapter.name} is in the trash")
        shell.stay(adapter=adapter.id)


def learned(adapter: Adapter) -> None:
    """The run's previews: how it came to be."""
    if not adapter.run_id or shell.workspace().catalog.find(Run, adapter.run_id) is None:
        return
    rows = film_rows(shell.workspace().run_dir(adapter.run_id), adapter.run_id)
    if rows:
        st.subheader("While it learned", anchor=False)
        film(rows, key="adapter-film")


def made_with(adapter: Adapter) -> None:
    """Samples that used it."""
    catalog = shell.workspace().catalog
    used = catalog.lineage.samples_with([(adapter.id, adapter.tensor_sha256)], limit=SAMPLES)
    if not used:
        return
    bases = {base.id: base for base in catalog.list(Base)}
    cards = [card for sample in used for card in sample_cards(sample, bases)][:SAMPLES]
    st.subheader("Made with it", anchor=False)
    if opened := gallery(cards, key="adapter-samples", least=150):
        shell.go("sample", sample=opened)
