"""X-ray: what an adapter changes where, and how alike two adapters are."""

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from registry.records import Adapter
from studio.app import shell
from studio.app.beside import beside
from studio.app.components.adapter_file import seen_state
from studio.app.components.needed_base import base_field
from studio.app.components.pick_adapter import pick_adapter
from studio.app.components.xray_chart import likeness_bars, share_bars
from studio.app.words import md
from studio.workspace import Workspace

ALIKE = (  # least similarity, in words
    (0.95, "nearly the same"),
    (0.5, "alike"),
    (0.1, "somewhat alike"),
    (-0.1, "unrelated: they go well together"),
    (-1.01, "opposed: together they take from each other"),
)


def xray_panel(adapter: Adapter) -> None:
    """Shown at once where it was looked at before, else when asked."""
    if adapter.trashed_at is not None or not adapter.family or seen_state(adapter) == "missing":
        return
    from studio.xrays import kept

    asked = f"xray-{adapter.id}"
    known = kept(shell.workspace(), [adapter])
    with st.expander("X-ray: what it changes, and where", icon=":material/monitoring:", expanded=bool(known)):
        base = "" if known else base_field([adapter], key=f"{asked}-base")
        if not known and asked not in st.session_state:
            st.caption("Its weights are read and taken apart, which takes some seconds for a large one.")
            if st.button("Look inside", key=f"{asked}-look"):
                st.session_state[asked] = True
                st.rerun()
            return
        found = known or _look([adapter], base)
        if found:
            overview(found["adapters"][0], key=asked)
            compare(adapter, base)


def overview(seen: Mapping[str, Any], *, key: str) -> None:
    """Warnings, a few figures, bars, and the figures behind them."""
    for line in seen["warnings"]:
        st.markdown(f":orange[:material/warning:] {md(line[:1].upper() + line[1:])}.")
    if not seen["warnings"]:
        st.markdown(":green[:material/check_circle:] Nothing stands out.")
    if not seen["blocks"]:
        return
    alive = [block for block in seen["blocks"] if block["effective"]]
    used = sum(block["effective"] * block["modules"] for block in alive)
    mean = used / max(1, sum(block["modules"] for block in alive))
    with st.grid("auto", min_column_width=150, gap="small"):
        for label, value, hint in (
            ("Size of the change", f"{seen['norm']:.3g}", "Frobenius norm over all parts"),
            ("Capacity used", f"{mean:.1f} of {seen['rank']}", "effective rank, on average, of the rank"),
            ("Parts without effect", f"{seen['dead']} of {seen['count']}", "modules whose change is zero"),
        ):
            st.metric(label, value, help=hint)
    st.caption("How much of the change lies in each block, from first to last")
    share_bars(seen["blocks"], key=f"{key}-bars")
    with st.expander("All figures"):
        st.table([_row(block) for block in seen["blocks"]], border="horizontal", hide_index=True)
        st.caption("The parts that change most")
        st.code("\n".join(f"{m['norm']:.3g}  {m['module']}" for m in seen["modules"]), language=None)


def compare(adapter: Adapter, base: str) -> None:
    """Choose another adapter and see whether both pull the same way."""
    st.markdown("**Compare with another adapter**")
    key = f"alike-{adapter.id}"
    other = pick_adapter("Another adapter", adapter.family, without={adapter.id}, key=key)
    if other is None:
        return
    found = _look([adapter, other], base)
    if not found:
        return
    pair = found["similarity"][0]
    if not pair["shared"]:
        st.markdown("They change no part in common.")
        return
    words = next(text for least, text in ALIKE if pair["overall"] >= least)
    st.markdown(
        f"{pair['overall']:+.0%}, **{words}** :gray[· the cosine of their changes, over {pair['shared']} "
        "parts that both change]"
    )
    likeness_bars(pair["blocks"], key=f"{key}-bars")


def _look(adapters: Sequence[Adapter], base: str) -> dict[str, Any] | None:
    from studio.xrays import kept

    known = kept(shell.workspace(), adapters, base)
    if known:
        return known
    key = "-".join(["xray", *(adapter.id for adapter in adapters), base])
    workspace = shell.workspace()
    return beside(key, lambda: _work(workspace, adapters, base), "Looking inside; it takes some seconds")


def _work(workspace: Workspace, adapters: Sequence[Adapter], base: str) -> dict[str, Any]:
    from studio.xrays import look

    return look(workspace, adapters, base)


def _row(block: Mapping[str, Any]) -> dict[str, str]:
    return {
        "Block": block["block"],
        "Share": f"{block['share']:.1%}",
        "Size": f"{block['norm']:.3g}",
        "Strongest": f"{block['spectral']:.3g}",
        "Capacity used": f"{block['effective']:.1f}",
        "Parts": str(block["modules"]),
        "Without effect": str(block["dead"] or ""),
    }
