"""The file of an adapter: a banner when it is not what it was, and where it lies."""

from pathlib import Path

import streamlit as st

from registry.records import Adapter, FileState
from studio.app import shell, state
from studio.app.words import ago, md, printable, size

TOUCHED = "touched"  # written to since it was read last; what became of it is not known


def seen_state(adapter: Adapter) -> str:
    """State of the file at a glance: what was found last, unless one look at the folder says otherwise."""
    try:
        status = shell.workspace().resolve(adapter.path).stat()
    except OSError:
        return FileState.MISSING
    if not adapter.tensor_sha256:
        return FileState.NEW
    same = adapter.mtime_ns in (0, status.st_mtime_ns)
    if adapter.file_state is FileState.MISSING or not same:
        return TOUCHED
    return adapter.file_state


def banner(adapter: Adapter) -> None:
    """What is wrong with the file and what to do about it; nothing when it is as it should be."""
    if adapter.trashed_at is not None:
        return
    found = seen_state(adapter)
    if found in (FileState.OK, FileState.EDITED):
        return
    with st.container(key="panel-file"):
        if found == FileState.NEW:
            _unread(adapter)
        elif found == FileState.MISSING:
            _missing(adapter)
        elif found == FileState.CHANGED:
            _changed(adapter)
        else:
            _touched(adapter)


def _unread(adapter: Adapter) -> None:
    st.markdown(
        ":material/hourglass_empty: **Not read yet.** Only the head of its file is known. The rest is read "
        "in the background, or now."
    )
    if st.button("Read it now", key="file-read"):
        from studio.adapter_files import settled

        with shell.guarded(), st.spinner("Reading the file"):
            known = settled(shell.workspace(), adapter)
            same = known.id == adapter.id
            shell.note(f"{known.name} is read" if same else f"It is the same as {known.name}")
            shell.stay(adapter=known.id)


def _missing(adapter: Adapter) -> None:
    st.markdown(":red[:material/error:] **The file is not there any more.** It was here:")
    st.text(printable(shell.workspace().resolve(adapter.path)))
    if adapter.tensor_sha256:
        st.caption("Look for it in the workspace and in the watched folders, or say where it is now.")
        _search()
    _elsewhere(adapter)


def _changed(adapter: Adapter) -> None:
    st.markdown(
        ":red[:material/error:] **The file has changed.** Its weights are not those that were registered, so "
        "it is not used. Put the original back, or say where it is."
    )
    _check(adapter)
    _elsewhere(adapter)


def _touched(adapter: Adapter) -> None:
    st.markdown(":orange[:material/warning:] **The file may have changed since it was read last.**")
    _check(adapter)


def _check(adapter: Adapter) -> None:
    if st.button("Check the file", key="file-check", icon=":material/fact_check:"):
        from studio.adapter_files import verify

        with shell.guarded(), st.spinner("Reading the file"):
            check = verify(shell.workspace(), adapter.id)
            words = {FileState.OK: "is as it was", FileState.EDITED: "has the same weights, other metadata"}
            shell.note(f"The file {words.get(check.state, 'is not what it was')}")
            st.rerun()


def _search() -> None:
    if st.button("Look for it", key="file-search", type="primary", icon=":material/search:"):
        from studio.imports.submit import submit_check

        with shell.guarded():
            submit_check(shell.workspace())
            state.wake_worker()
            shell.note("Looking for it; when it is found, it is linked again")
            st.rerun()


def _elsewhere(adapter: Adapter) -> None:
    """A path by hand: kept only when its weights are the adapter's."""
    if not adapter.tensor_sha256:
        return
    with st.form(f"found-{adapter.id}", border=False):
        text = st.text_input(
            "Where the file is now", placeholder="/folder/name.safetensors", key="file-place"
        )
        if st.form_submit_button("Use this file"):
            from registry.errors import BadInput
            from registry.files import expand_home
            from studio.adapter_files import verify

            with shell.guarded():
                if not (text or "").strip():
                    raise BadInput("path", "is empty", "write where the file is")
                with st.spinner("Comparing"):
                    verify(shell.workspace(), adapter.id, expand_home((text or "").strip()))
                shell.note(f"{adapter.name} has its file again")
                st.rerun()


def files(adapter: Adapter) -> None:
    """Path, size, precision, parts, hashes and what the file says about itself."""
    with st.expander("File and fingerprints", icon=":material/fingerprint:"):
        _facts(adapter, shell.workspace().resolve(adapter.path))
        for label, value in (
            ("Fingerprint of the file (SHA-256)", adapter.file_sha256),
            ("Fingerprint of its weights, its identity here", adapter.tensor_sha256),
        ):
            st.caption(label)
            st.code(value or "not read yet", language=None, wrap_lines=True)
        if adapter.metadata:
            st.caption("What is known about it")
            st.json(adapter.metadata, expanded=False)


def _facts(adapter: Adapter, path: Path) -> None:
    st.caption("Where it is")
    st.code(printable(path), language=None, wrap_lines=True)
    with st.grid("auto", min_column_width=130, gap="small"):
        for label, value, term in (
            ("Size", size(adapter.size), ""),
            ("Precision", adapter.metadata.get("dtype") or "unknown", "dtype"),
            ("Parts", adapter.metadata.get("modules") or "unknown", "modules"),
            ("Last looked at", ago(adapter.checked_at) or "never", ""),
        ):
            with st.container():
                shell.fact(label, value, term=term)
    if adapter.source:
        st.caption(f"Came from {md(adapter.source)}")
