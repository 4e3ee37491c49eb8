"""One adapter: picture, provenance both ways, what it is, what a person says about it, trash and export."""

from datetime import datetime
from pathlib import Path

import streamlit as st

from registry.errors import StudioError
from registry.records import Adapter, Base, Run
from studio.app import shell
from studio.app.components.cards import adapter_preview, family_label, film_rows, sample_cards
from studio.app.components.chain import chain
from studio.app.components.export_dialog import export_dialog
from studio.app.components.gallery import Card, film, gallery
from studio.app.words import ago, md, plural, size

SAMPLES = 12  # pictures shown of those made with it


def show(adapter: Adapter) -> None:
    """The whole page."""
    if st.button("All adapters", icon=":material/arrow_back:", type="tertiary"):
        shell.stay()
    shell.heading(md(adapter.name))
    if adapter.trashed_at is not None:
        in_trash(adapter)
    picture, facts = st.columns([2, 3], gap="medium")
    with picture:
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
        actions(adapter)
    with facts:
        chain(adapter)
        about(adapter)
        opinion(adapter)
    learned(adapter)
    made_with(adapter)
    exported(adapter)
    files(adapter)


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
    with st.container(horizontal=True):
        if st.button("Make pictures", type="primary", icon=":material/brush:"):
            shell.go("sample", adapter=adapter.id)
        if st.button("Export", icon=":material/ios_share:"):
            export_dialog(adapter)
        if st.button("To the trash", icon=":material/delete:"):
            trash(adapter)


def trash(adapter: Adapter) -> None:
    """Undoable, so it needs no question."""
    from studio.adapters import trash as put_into_trash

    with shell.guarded():
        put_into_trash(shell.workspace(), adapter.id)
        shell.note(f"{adapter.name} is in the trash")
        shell.stay(adapter=adapter.id)


def about(adapter: Adapter) -> None:
    """What it is for and how to call it up."""
    with st.grid(2, min_column_width=150, gap="small"):
        with st.container():
            shell.fact("Works with", family_label(adapter.family), term="family")
        with st.container():
            shell.fact("Strength to start with", f"{adapter.recommended_weight:g}", term="weight")
        with st.container():
            shell.fact("Capacity", adapter.rank, term=f"rank, alpha {adapter.alpha:g}")
        with st.container():
            shell.fact("Changes", ", ".join(adapter.targets).replace("_", " ") or "unknown", term="targets")
    if adapter.trigger_words:
        st.caption("Write this in your prompt (trigger words)")
        st.code(", ".join(adapter.trigger_words), language=None)


def opinion(adapter: Adapter) -> None:
    """Name, rating, tags and note; saved as they are changed."""
    stars = st.feedback(
        "stars", key=f"stars-{adapter.id}", default=adapter.rating - 1 if adapter.rating else None
    )
    if stars is not None and stars + 1 != adapter.rating:
        change(adapter, rating=stars + 1)
    with (
        st.expander("Name, tags and note", icon=":material/edit:"),
        st.form(f"opinion-{adapter.id}", border=False),
    ):
        name = st.text_input("Name", adapter.name, max_chars=100)
        words = st.text_input("Trigger words", ", ".join(adapter.trigger_words), help="Separated by commas")
        tags = st.text_input("Tags", ", ".join(adapter.tags), help="Separated by commas")
        weight = st.number_input("Strength to start with", -4.0, 4.0, adapter.recommended_weight, 0.05)
        text = st.text_area("Note", adapter.note, placeholder="What works, what does not")
        if st.form_submit_button("Save", type="primary"):
            from registry.files import check_name

            with shell.guarded():
                change(
                    adapter,
                    name=check_name((name or "").strip(), "name"),
                    trigger_words=parts(words),
                    tags=parts(tags),
                    recommended_weight=float(weight),
                    note=(text or "").strip(),
                )
    if adapter.note:
        st.text(adapter.note)


def parts(text: str | None) -> tuple[str, ...]:
    """ "a, b,, a" -> ("a", "b")."""
    return tuple(dict.fromkeys(word.strip() for word in (text or "").split(",") if word.strip()))


def change(adapter: Adapter, **changes: object) -> None:
    """Save and show the page anew."""
    try:
        shell.workspace().catalog.update(Adapter, adapter.id, **changes)
    except StudioError as error:
        shell.complain(error)
        return
    shell.note("Saved")
    st.rerun()


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


def exported(adapter: Adapter) -> None:
    """Files that were written from it, with what was proven."""
    from studio.exports import exports_of

    rows = [
        {
            "Written": ago(datetime.fromisoformat(item["created_at"])),
            "File": md(Path(item["path"]).name),
            "For": f"{item['layout']}, {item['dtype']}" + (", published" if item["publish"] else ""),
            "Parts": f"{item['report']['matched']} of {item['report']['modules']}",
            "": "" if item["present"] else "not there any more",
        }
        for item in exports_of(shell.workspace(), adapter)
    ]
    if rows:
        with st.expander(f"Exported: {plural(len(rows), 'file')}", icon=":material/ios_share:"):
            st.table(rows, border="horizontal", hide_index=True)


def files(adapter: Adapter) -> None:
    """Path, size and hashes."""
    with st.expander("File and fingerprints", icon=":material/fingerprint:"):
        path = shell.workspace().resolve(adapter.path)
        present = "" if path.exists() else "  (missing)"
        st.text(f"{path}{present}")
        st.caption(f"{size(adapter.size)} · SHA-256 of the file, then of its tensors (its identity)")
        st.code(f"{adapter.file_sha256}\n{adapter.tensor_sha256}", language=None, wrap_lines=True)
        if adapter.metadata:
            st.caption("What the file says about itself")
            st.json(adapter.metadata, expanded=False)
