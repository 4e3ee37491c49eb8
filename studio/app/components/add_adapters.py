"""Taking adapters in: drop files, name places, watch folders."""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import streamlit as st

from registry.errors import StudioError
from registry.records import Watch
from studio.app import shell, state
from studio.app.components import notice
from studio.app.components.adapter_head import parts
from studio.app.components.extract_dialog import extract_dialog
from studio.app.words import ago, md


def show() -> None:
    """The whole page."""
    if st.button("All adapters", icon=":material/arrow_back:", type="tertiary"):
        shell.stay()
    shell.heading(
        "Add adapters", "Bring in what you have already, from any program. Your files stay as they are."
    )
    notice.show()
    files: Sequence[Any] = st.file_uploader(
        "Drop adapter files", ("safetensors",), accept_multiple_files=True, key="add-files"
    )
    places = st.text_area(
        "Or say where they are",
        key="add-places",
        placeholder="/home/me/ComfyUI/models/loras\nhttps://huggingface.co/owner/name/resolve/main/x.safetensors",
        help="One a line: a file, a folder with all below it, or an address of Hugging Face or Civitai",
        height=110,
    )
    tags = st.text_input("Tags for all of them", key="add-tags", placeholder="separated by commas")
    copy = st.toggle(
        "Copy them into the workspace",
        key="add-copy",
        help="Otherwise they stay in their folder. What is dropped or fetched is always kept here.",
    )
    if st.button("Add them", type="primary", key="add-go", icon=":material/add:"):
        with shell.guarded():
            lines = [line.strip() for line in (places or "").splitlines() if line.strip()]
            shell.stay(imports=",".join(begin(files, lines, copy=copy, tags=parts(tags))))
    watched()
    st.subheader("Out of a fine-tuned model", anchor=False)
    st.caption("What a fine-tuned model has that its base has not can be taken out as an adapter (extract).")
    if st.button("Take an adapter out", key="add-extract", icon=":material/colorize:"):
        extract_dialog(None)


def begin(files: Sequence[Any], places: Sequence[str], *, copy: bool, tags: Sequence[str]) -> list[str]:
    """Queue one import of the places and one of the dropped files, which are always copied; their ids.

    Raises:
        BadInput: there is nothing, or a place is not there.
        StudioError: the disk is full.
    """
    from studio.imports.submit import submit, upload

    workspace = shell.workspace()
    jobs = [submit(workspace, places, copy=copy, tags=tags)] if places or not files else []
    if files:
        with st.spinner("Keeping the files"):
            kept = [upload(workspace, file.name, file) for file in files]
        jobs.append(submit(workspace, kept, copy=True, tags=tags))
    with suppress(StudioError):  # the next page says that nobody works, and has the button
        state.wake_worker()
    return [job.id for job in jobs]


def watched() -> None:
    """Folders whose new files come in by themselves."""
    from studio.imports.watch import add

    st.subheader("Watched folders", anchor=False)
    st.caption("What is put into these folders is added by itself while the studio runs.")
    for watch in shell.workspace().catalog.list(Watch, order="path"):
        _row(watch)
    with (
        st.form("watch-folder", border=False, clear_on_submit=True),
        st.container(horizontal=True, vertical_alignment="bottom"),
    ):
        folder = st.text_input("Folder", placeholder="/home/me/ComfyUI/models/loras")
        if st.form_submit_button("Watch it", icon=":material/visibility:"):
            with shell.guarded():
                made = add(shell.workspace(), (folder or "").strip())
                with suppress(StudioError):
                    state.wake_worker()
                shell.note(f"{made.path} is watched")
                st.rerun()


def _row(watch: Watch) -> None:
    from studio.imports.watch import add, remove

    workspace = shell.workspace()
    with st.container(key=f"panel-watch-{watch.id}", horizontal=True, vertical_alignment="center"):
        seen = f"looked at {ago(watch.scanned_at)}" if watch.scanned_at else "not looked at yet"
        wrong = f" :orange[{md(watch.note)}]" if watch.note else ""
        st.markdown(f"{md(watch.path)}  \n:small[:gray[{seen}]{wrong}]", width="stretch")
        if st.button("Remove", key=f"unwatch-{watch.id}", icon=":material/close:", type="tertiary"):
            with shell.guarded():
                remove(workspace, watch.id)
                text = f"{watch.path} is not watched any more. What came from it stays."
                notice.leave(text, undo=partial(add, workspace, watch.path))
                st.rerun()
