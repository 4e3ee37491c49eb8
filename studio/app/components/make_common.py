"""What the dialogs that make an adapter share: name, progress with time left, the way to the result."""

from collections.abc import Callable
from time import monotonic

import streamlit as st

from registry.errors import StudioError
from registry.records import Adapter
from studio.app import shell
from studio.app.words import duration

Told = Callable[[int, int], None]


def name_field(proposed: str, *, key: str) -> str:
    """Name of the new adapter; "" while it cannot be used, which is said below the field."""
    from studio.made import require_free_name

    name = (st.text_input("Name of the new adapter", proposed, max_chars=100, key=key) or "").strip()
    try:
        require_free_name(shell.workspace(), name)
    except StudioError as error:
        shell.complain(error)
        return ""
    return name


def free_name(proposed: str) -> str:
    """The first of "name", "name 2", ... that no adapter has."""
    from studio.adapters import numbered

    catalog = shell.workspace().catalog
    return next(name for name in numbered(proposed[:100]) if not catalog.list(Adapter, name=name, limit=1))


def with_progress(work: Callable[[Told], Adapter]) -> None:
    """Do it while a bar shows how far it is, then open what was made.

    Stop, like any other click, ends this run of the script at the next call of the bar; nothing is kept then.
    """
    place = st.empty()
    with place.container():
        bar = st.progress(0.0, text="Reading the weights")
        st.button("Stop", key="make-stop")
    begun = monotonic()

    def tell(done: int, total: int) -> None:
        passed = monotonic() - begun
        left = duration(passed / done * (total - done)) if done and passed > 1 else ""
        text = f"{done:,} of {total:,} parts" + (f", {left} left" if left else "")
        bar.progress(done / total if total else 0.0, text=text)

    try:
        adapter = work(tell)
    except StudioError as error:
        place.empty()
        shell.complain(error)
        return
    shell.note(f"Made {adapter.name}")
    shell.stay(adapter=adapter.id)
