"""The dialog in which a model writes the captions of a data set."""

from typing import TYPE_CHECKING

import streamlit as st

from registry.records import Dataset, Image
from studio.app import shell
from studio.app.words import plural

if TYPE_CHECKING:
    from studio.datasets.captioners.table import CaptionOptions

PHASES = {
    "starting": "Starting",
    "fetching": "Looking for the model; a first download takes minutes",
    "loading": "Loading the model",
    "captioning": "Writing",
}


@st.dialog("Let a model write captions", icon=":material/auto_awesome:", width="medium")
def caption_dialog(dataset: Dataset) -> None:
    """Choose a captioner and let it run; what it has written stays when the dialog is closed."""
    caption_form(dataset)


def caption_form(dataset: Dataset) -> None:
    """What the dialog holds."""
    from studio.datasets.captioners.table import CAPTIONERS, DEFAULT, CaptionOptions

    names = list(CAPTIONERS)
    chosen = st.selectbox(
        "Captioner",
        names,
        names.index(DEFAULT),
        format_func=lambda name: CAPTIONERS[name].about,
        key="captioner-name",
    )
    info = CAPTIONERS[chosen]
    model = st.text_input(
        "Model",
        placeholder=info.model,
        help="A folder on this machine, or owner/name on the hub. Empty = the one in grey.",
        key="captioner-model",
    )
    prompt = ""
    if info.style == "sentences":
        prompt = st.text_input("Prompt", placeholder=info.prompt or "none", key="captioner-prompt")
    threshold = 0.35
    if info.style == "tags":
        threshold = st.slider("Least probability of a tag", 0.05, 0.95, threshold, key="captioner-threshold")
    overwrite = st.toggle("Also where there is a caption", key="captioner-overwrite")
    bare = shell.workspace().catalog.count(Image, dataset_id=dataset.id, caption="")
    count = dataset.image_count if overwrite else bare
    st.caption(f"{plural(count, 'picture')} to caption. Read what was written: models invent things.")
    if st.button("Start writing", type="primary", disabled=not count):
        options = CaptionOptions(
            captioner=chosen, model=model.strip(), prompt=prompt.strip(), threshold=threshold
        )
        with shell.guarded():
            _run(dataset, options, overwrite)


def _run(dataset: Dataset, options: "CaptionOptions", overwrite: bool) -> None:
    from studio.datasets.captioners.run import caption_dataset

    bar = st.progress(0.0, text=PHASES["starting"])

    def say(phase: str, done: int, total: int) -> None:
        bar.progress(done / total, text=f"{PHASES.get(phase, phase)} · {done:,} of {total:,}")

    try:
        report = caption_dataset(shell.workspace(), dataset, options, overwrite=overwrite, progress=say)
    finally:
        bar.empty()
    for key in [key for key in st.session_state if str(key).startswith("caption-")]:
        st.session_state.pop(key)  # fields that show what was there before
    words = f"{plural(report.written, 'caption')} written"
    shell.note(f"{words}; none for {report.empty[0]}" if report.empty else words)
    st.rerun()
