"""What the file says about itself; its weights stay as they are, to the bit."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import streamlit as st

from registry.errors import StudioError
from registry.formats.header import read_header
from registry.records import Adapter
from studio.app import shell
from studio.app.components.adapter_head import parts

FIELDS = {
    "title": "Title",
    "author": "Author",
    "license": "Licence in the file",
    "description": "Description",
}
LONGEST = 2000  # characters of a field


@st.dialog("What the file says", width="medium", icon=":material/edit_document:")
def edit_dialog(adapter: Adapter) -> None:
    """Change the metadata that other programs read from the file."""
    edit_form(adapter)


def edit_form(adapter: Adapter) -> None:
    """What the dialog shows."""
    workspace = shell.workspace()
    path = workspace.resolve(adapter.path)
    said: Mapping[str, str] = {}
    with suppress(StudioError, OSError):
        said = read_header(path).metadata
    st.caption("Other programs read this from the file. The weights stay as they are.")
    with st.form(f"edit-{adapter.id}", border=False):
        texts = {
            name: st.text_input(label, said.get(f"modelspec.{name}", "")[:LONGEST], LONGEST, f"edit-{name}")
            for name, label in FIELDS.items()
        }
        words = st.text_input("Trigger words", ", ".join(adapter.trigger_words), key="edit-words")
        picture = st.toggle("Put the preview into the file", key="edit-picture", disabled=not adapter.preview)
        ours = path.resolve().is_relative_to(workspace.home.resolve())
        allowed = ours or st.toggle("It lies outside the workspace; change it there", key="edit-outside")
        if not st.form_submit_button("Write it", type="primary"):
            return
    changed = {name: (text or "").strip() for name, text in texts.items()}
    changed = {
        name: text for name, text in changed.items() if text != said.get(f"modelspec.{name}", "")[:LONGEST]
    }
    new = parts(words)
    with shell.guarded():
        _edit(
            adapter, changed, None if new == adapter.trigger_words else new,
            workspace.resolve(adapter.preview) if picture and adapter.preview else None, in_place=allowed,
        )  # fmt: skip


def _edit(
    adapter: Adapter,
    changed: Mapping[str, str],
    words: tuple[str, ...] | None,
    picture: Path | None,
    *,
    in_place: bool,
) -> None:
    from registry.errors import BadInput
    from registry.formats.operations.edit import Edit
    from studio.operations import edit

    if not in_place:
        raise BadInput("the file", "lies outside the workspace", "turn on that it is changed there")
    changes = Edit(
        title=changed.get("title"), author=changed.get("author"), licence=changed.get("license"),
        description=changed.get("description"), trigger_words=words, thumbnail=picture,
    )  # fmt: skip
    if changes == Edit():
        raise BadInput("the fields", "say what the file says already", "change one of them")
    edit(shell.workspace(), adapter.id, changes, in_place=in_place)
    shell.note("Written; the weights are as they were")
    st.rerun()
