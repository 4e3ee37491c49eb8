"""Bases: the models that adapters are trained on and used with."""

import streamlit as st

from registry.records import Adapter, Base, Run
from studio.app import shell
from studio.app.components.bake_dialog import bake_dialog
from studio.app.components.cards import family_label
from studio.app.components.extract_dialog import extract_dialog
from studio.app.words import ago, md, plural
from studio.control_facts import PART_LABELS
from studio.media_facts import what_is_it
from studio.sampling.media.kinds import KINDS as MADE
from studio.sampling.media.kinds import kind_name, word_of
from trainers.families import FAMILIES

BAKE, EXTRACT = "Put adapters into it", "Take an adapter out of a model trained from it"
MORE = (BAKE, EXTRACT)
_LABELS = [family.label for family in FAMILIES.values()]
KNOWN = f"{', '.join(_LABELS[:-1])} or {_LABELS[-1]}"
KINDS = {"folder": "folder", "file": "single file", "hub": "from the hub"}


def page() -> None:
    """List and add."""
    from studio.bases import list_bases, list_media, list_motions, list_parts

    shell.heading("Bases", "The models that everything builds on. They stay where they are on your disk.")
    named = shell.asked(Base, "base")
    bases = list_bases(shell.workspace())
    if named is not None:  # what a link is about stands first
        bases.sort(key=lambda base: base.id != named.id)
    with st.container(horizontal=True):
        if st.button("Add a base", type="primary", icon=":material/add:"):
            add_dialog()
    for base in bases:
        row(base)
    others = {
        "For video, sound and 3D": list_media,
        "What steers them": list_parts,
        "What makes them move": list_motions,
    }
    for title, listing in others.items():
        if parts := listing(shell.workspace()):
            st.subheader(title, anchor=False)
            for part in parts:
                row(part)
    if all(base.builtin for base in bases):
        st.caption(
            f"The pocket bases are tiny and made for trying things out. For real pictures add {KNOWN}: a "
            "diffusers folder, a .safetensors checkpoint, or its name on the hub."
        )


def row(base: Base) -> None:
    """One base."""
    from studio.provenance import made_from

    workspace = shell.workspace()
    with st.container(key=f"panel-{base.id}"):
        with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
            st.subheader(md(base.name), anchor=False, width="content")
            if base.builtin:
                st.badge("shipped", color="gray")
            elif st.button("Remove", key=f"remove-{base.id}", icon=":material/close:", type="tertiary"):
                remove_dialog(base)
        variant = f", {base.variant}" if base.variant else ""
        st.markdown(md(f"{_label(base)}{variant}"))
        if base.part:
            st.caption(f"{KINDS[base.kind]} · added {ago(base.created_at)}")
            st.text(base.location)
            if (made := kind_name(base)) and st.button(f"Make a {word_of(made)}", key=f"sample-{base.id}"):
                shell.go("sample", base=base.id)
            return
        runs = plural(workspace.catalog.count(Run, base_id=base.id), "run")
        adapters = plural(workspace.catalog.count(Adapter, base_id=base.id), "adapter")
        st.caption(f"{runs}, {adapters} · {KINDS[base.kind]} · added {ago(base.created_at)}")
        if line := made_from(base):
            st.caption(f"Baked from {md(line)}")
        if not base.builtin:
            st.text(base.location)
        with st.container(horizontal=True):
            if st.button("Train on it", key=f"train-{base.id}"):
                shell.go("train", base=base.id)
            if st.button("Make pictures", key=f"sample-{base.id}"):
                shell.go("sample", base=base.id)
            chosen = st.menu_button("More", list(MORE), icon=":material/more_horiz:", key=f"more-{base.id}")
            if chosen == BAKE:
                bake_dialog(base=base)
            elif chosen == EXTRACT:
                extract_dialog(base, elsewhere=True)


def _label(base: Base) -> str:
    """What it is."""
    if kind := MADE.get(kind_name(base)):
        return f"{kind.label}, makes {kind.medium}"
    part = PART_LABELS.get(base.part) or what_is_it(base.part, base.family)
    return f"{part} for {family_label(base.family)}" if part else family_label(base.family)


@st.dialog("Add a base", icon=":material/add:")
def add_dialog() -> None:
    """Name and place; what it is, is found out."""
    from studio.bases import add_base

    with st.form("add-base", border=False):
        location = st.text_input(
            "Where it is",
            placeholder="/models/stable-diffusion-v1-5",
            help="A diffusers folder, a .safetensors checkpoint, or a name on the hub such as owner/model; "
            "of a base, of a ControlNet, or of what makes video, sound or 3D",
        )
        name = st.text_input("Name", placeholder="What you call it", max_chars=100)
        with st.expander("More"):
            family = st.selectbox(
                "Family",
                ["", *FAMILIES],
                format_func=lambda key: FAMILIES[key].label if key else "Find out (recommended)",
            )
            config = st.text_input("Folder with configs and tokenizer", help="For a single file only")
            revision = st.text_input("Revision", help="Commit of a name on the hub")
        if st.form_submit_button("Add", type="primary"):
            with shell.guarded(), st.spinner("Looking at it"):
                base = add_base(
                    shell.workspace(),
                    name or "",
                    location or "",
                    family=family or "",
                    config=config or "",
                    revision=revision or "",
                )
                what = PART_LABELS.get(base.part) or what_is_it(base.part, base.family) or "base"
                label = MADE[base.family].label if base.family in MADE else family_label(base.family)
                shell.note(f"{base.name} is a {label} {what}")
                st.rerun()


@st.dialog("Remove this base?")
def remove_dialog(base: Base) -> None:
    """Its files are not ours to delete, so this is undone by adding it again."""
    from studio.bases import remove_base

    st.markdown(
        f"**{md(base.name)}** leaves this list. Its files stay where they are; add it again at any time."
    )
    if st.button("Remove", type="primary"):
        with shell.guarded():
            remove_base(shell.workspace(), base.id)
            shell.note(f"{base.name} is removed from the list")
            st.rerun()


if __name__ == "__main__":
    page()
