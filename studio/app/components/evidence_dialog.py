"""Asking for an evidence sheet: what it takes, what may be chosen."""

import streamlit as st

from registry.records import Adapter, Dataset, Run
from studio.app import shell, state
from studio.app.words import duration, plural
from studio.evidence.evaluations import Asked, ask, begin
from studio.evidence.plan import SEEDS, WEIGHTS, Wishes

HELP_ENCODER = (
    "Folder or hub id of a CLIP, SigLIP or DINO model. Without one, likeness goes by colours, edges and "
)
HELP_ENCODER += "the autoencoder."


@st.dialog("Gather evidence", width="medium", icon=":material/balance:")
def evidence_dialog(about: Run | Adapter) -> None:
    """Choose and start."""
    evidence_form(about)


def evidence_form(about: Run | Adapter) -> None:
    """What the dialog shows."""
    st.markdown(
        "The same prompts and seeds are drawn with every checkpoint at several strengths, and without. "
        "What comes out says which one to use, and at which strength."
        if isinstance(about, Run)
        else "The same prompts and seeds are drawn with it at several strengths, and without."
    )
    dataset = base = ""
    if isinstance(about, Adapter) and not about.run_id:
        dataset = _named("Pictures to be like", Dataset, key="e-dataset")
        base = "" if about.base_id else _base(about)
    seeds = int(st.number_input("Pictures of each prompt", 2, 64, SEEDS, key="e-seeds"))
    with st.expander("More"):
        weights = st.multiselect(
            "Strengths", [0.25, *WEIGHTS, 1.5], list(WEIGHTS), format_func=lambda w: f"{w:g}", key="e-weights"
        )
        prompts = st.text_area(
            "Prompts that ask for it, one a line",
            key="e-prompts",
            placeholder="those of the run, and its captions",
        )
        encoder = st.text_input("Image encoder", key="e-encoder", help=HELP_ENCODER)
    wishes = Wishes(
        prompts=tuple(line.strip() for line in prompts.splitlines() if line.strip()),
        seeds=seeds,
        weights=tuple(weights),
        dataset=dataset,
        base=base,
        encoder=encoder.strip(),
    )
    if isinstance(about, Adapter) and not about.run_id and not dataset:
        st.caption("Choose a data set of such pictures: it was not trained here, so its own are unknown.")
        return
    with shell.guarded():
        asked = ask(shell.workspace(), about, wishes)
        st.caption(_takes(asked))
        if st.button("Start", type="primary", key="e-start"):
            begin(shell.workspace(), asked)
            state.wake_worker()
            st.rerun()


def _takes(asked: Asked) -> str:
    """How much there is to draw, in words."""
    if not asked.missing:
        return f"All {asked.cells:,} pictures are drawn already."
    time = f", about {duration(asked.seconds)}" if asked.seconds else ""
    return f"{plural(asked.missing, 'picture')} to draw{time}. It goes on without this page."


def _named(label: str, kind: type[Dataset], *, key: str) -> str:
    found = {one.id: one.name for one in shell.workspace().catalog.list(kind)}
    chosen = st.selectbox(label, list(found), index=None, format_func=found.__getitem__, key=key)
    return chosen or ""


def _base(about: Adapter) -> str:
    from studio.bases import list_bases

    fitting = [one for one in list_bases(shell.workspace()) if not about.family or one.family == about.family]
    names = {one.id: one.name for one in fitting}
    return st.selectbox("Base", list(names), format_func=names.__getitem__, key="e-base") or ""
