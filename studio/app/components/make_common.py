"""What the dialogs that make an adapter or a base share: name, progress with time left, the result."""

from collections.abc import Callable
from time import monotonic
from typing import TypeVar

import streamlit as st

from registry.errors import StudioError
from registry.records import Adapter
from studio.app import shell
from studio.app.words import duration, size

Told = Callable[[int, int], None]
Result = TypeVar("Result")


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


def make_adapter(work: Callable[[Told], Adapter], *, elsewhere: bool = False) -> None:
    """Do it while a bar shows how far it is, then open what was made.

    Args:
        work: Is given what the bar is told with, and returns the new adapter.
        elsewhere: The dialog is on another page than the adapters'.
    """
    adapter = with_progress(work)
    if adapter is None:
        return
    shell.note(f"Made {adapter.name}")
    if elsewhere:
        shell.go("adapters", adapter=adapter.id)
    else:
        shell.stay(adapter=adapter.id)


def with_progress(work: Callable[[Told], Result], *, in_bytes: bool = False) -> Result | None:
    """What `work` returns, while a bar shows how far it is; None when it failed, which is said.

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
        text = f"{size(done)} of {size(total)}" if in_bytes else f"{done:,} of {total:,} parts"
        text += f", {left} left" if left else ""
        bar.progress(done / total if total else 0.0, text=text)

    try:
        return work(tell)
    except StudioError as error:
        shell.complain(error)
        return None
    finally:
        place.empty()
