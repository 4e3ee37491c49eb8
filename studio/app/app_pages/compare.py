"""Compare: grids of pictures that differ in one thing at a time, a slider, blind votes."""

import streamlit as st

from registry.records import Comparison, Evaluation
from studio.app import shell
from studio.app.components import compare_builder, compare_detail, evidence_sheet, notice
from studio.app.components.compare_list import comparisons


def page() -> None:
    """One comparison, a new one, or all of them."""
    from studio.bases import list_bases

    workspace = shell.workspace()
    if (found := shell.asked(Evaluation, "evidence")) is not None:
        evidence_sheet.sheet(found)
        return
    chosen = shell.asked(Comparison, "comparison")
    if chosen is not None:
        compare_detail.detail(chosen)
        return
    new = "new" in st.query_params
    shell.heading("Compare", "See side by side what an adapter, a strength or a setting does.")
    notice.show()
    bases = list_bases(workspace)
    if not bases:
        do = [("Add a base", lambda: shell.go("bases"))]
        shell.empty("bases", "No base model yet", "Pictures need a base.", do)
    elif new:
        compare_builder.builder(bases)
    elif not workspace.catalog.count(Comparison):
        shell.empty(
            "comparisons",
            "Nothing compared yet",
            "Choose adapters, strengths and prompts: every combination is drawn, and you see which is best.",
            [("New comparison", lambda: shell.stay(new="1"))],
        )
    else:
        if st.button("New comparison", type="primary", icon=":material/add:"):
            shell.stay(new="1")
        comparisons()


if __name__ == "__main__":
    page()
