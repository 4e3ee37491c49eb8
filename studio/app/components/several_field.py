"""Several adapters with a strength each: what a merge is made of, and what goes into a base."""

from dataclasses import dataclass

import streamlit as st

from registry.records import Adapter
from studio.app import shell
from studio.app.components.block_weights import block_weights
from studio.app.components.pick_adapter import pick_adapter
from studio.app.words import md


@dataclass(frozen=True)
class Part:
    """An adapter and how strongly it goes in; `blocks` as in `operations.Use`."""

    adapter: Adapter
    weight: float
    blocks: str = ""


def several(family: str, first: Adapter | None = None, *, key: str) -> list[Part]:
    """What is chosen, with sliders, and the field that adds another.

    Args:
        family: Adapters of other families are not offered.
        first: Always there.
        key: Unique on the page.
    """
    chosen = _chosen(first, key)
    parts = [_part(adapter, first, key) for adapter in chosen]
    picker = f"{key}-{first.id if first else family}-{len(chosen)}"
    other = pick_adapter("Another adapter", family, without={a.id for a in chosen}, key=picker)
    if other is not None:
        add = _ids(first, key).append
        st.button(f"Add {md(other.name)}", key=f"{key}-add", on_click=add, args=(other.id,))
    return parts


def begin_with(first: Adapter, others: list[str], *, key: str) -> None:
    """Choose these, before the field is shown."""
    _ids(first, key)[:] = others


def _ids(first: Adapter | None, key: str) -> list[str]:
    return st.session_state.setdefault(f"{key}-others-{first.id if first else ''}", [])


def _chosen(first: Adapter | None, key: str) -> list[Adapter]:
    """The first and those that were added, as long as they are there."""
    catalog = shell.workspace().catalog
    others = [catalog.find(Adapter, id) for id in _ids(first, key)]
    there = [other for other in others if other and other.trashed_at is None]
    return [first, *there] if first else there


def _part(part: Adapter, first: Adapter | None, key: str) -> Part:
    with st.container(border=True, gap="xsmall"):
        start = min(2.0, max(-1.0, part.recommended_weight))
        weight = st.slider(
            md(part.name), -1.0, 2.0, start, 0.05, key=f"{key}-weight-{part.id}",
            help="How strongly it goes in (weight)",
        )  # fmt: skip
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            blocks = block_weights(part, key=f"{key}-blocks-{part.id}")
            if first is None or part.id != first.id:
                drop = _ids(first, key).remove
                name = f"{key}-drop-{part.id}"
                st.button("Leave out", key=name, type="tertiary", on_click=drop, args=(part.id,))
    return Part(part, weight, blocks)
