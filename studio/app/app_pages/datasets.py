"""Data sets: drop pictures in, say what they show, see what training would trip over."""

import streamlit as st

from registry.records import Dataset
from studio.app import shell
from studio.app.components import dataset_detail, upload
from studio.app.components.cards import dataset_card
from studio.app.components.demo import demo_button
from studio.app.components.gallery import gallery
from studio.app.words import plural

PER_PAGE = 24


def page() -> None:
    """One data set when the address names one, the form when it asks for it, else the list."""
    if found := shell.asked(Dataset, "dataset"):
        dataset_detail.show(found)
        return
    if st.query_params.get("new") == "1":
        new()
        return
    listing()


def listing() -> None:
    """Cards."""
    catalog = shell.workspace().catalog
    shell.heading("Data sets", "Pictures with a few words each: what training learns from.")
    total = catalog.count(Dataset)
    if not total:
        with st.container(key="empty-datasets", horizontal_alignment="center"):
            st.subheader("No pictures yet", anchor=False, width="content")
            st.markdown(
                ":gray[Ten to thirty pictures of one style, character or thing. "
                "Variety in everything else helps.]",
                width="content",
            )
            with st.container(horizontal=True, horizontal_alignment="center"):
                if st.button("Add pictures", type="primary", icon=":material/add_photo_alternate:"):
                    shell.stay(new="1")
                demo_button("datasets")
        return
    if st.button("Add pictures", type="primary", icon=":material/add_photo_alternate:"):
        shell.stay(new="1")
    place = shell.place(total, PER_PAGE, "datasets-page")
    datasets = catalog.list(Dataset, limit=PER_PAGE, offset=(place - 1) * PER_PAGE)
    if opened := gallery([dataset_card(dataset) for dataset in datasets], key="datasets-grid"):
        shell.stay(dataset=opened)
    shell.pager(total, PER_PAGE, "datasets-page")


def new() -> None:
    """Files, name, trigger word."""
    if st.button("All data sets", icon=":material/arrow_back:", type="tertiary"):
        shell.stay()
    shell.heading("Add pictures", "Drop files or a zip. Text files with the same names become captions.")
    files = upload.pictures_field("new-files")
    upload.about_masks()
    name = st.text_input("Name", key="new-name", max_chars=100, placeholder="What these pictures are")
    trigger = st.text_input(
        "Trigger word",
        key="new-trigger",
        max_chars=60,
        placeholder="A made-up word, such as zibbo",
        help="The word that will call up what is learned. A word that means nothing yet works best.",
    )
    with st.expander("From a folder of this machine, or from the Hugging Face hub", icon=":material/folder:"):
        place = st.text_input(
            "Folder, zip or data set", key="new-place", placeholder="/home/me/pictures or hf:owner/name"
        )
    if not st.button("Add", type="primary", disabled=not (files or place), key="new-go"):
        return
    from studio.datasets.ingest import create_dataset

    elsewhere = [place.strip()] if place and place.strip() else []
    with shell.guarded():
        report = upload.with_progress(
            files,
            lambda sources, say: create_dataset(
                shell.workspace(),
                (name or "").strip(),
                [*sources, *elsewhere],
                trigger=trigger or "",
                progress=say,
            ),
        )
        st.session_state[f"report-{report.dataset.id}"] = report
        shell.note(f"{plural(report.added, 'picture')} added")
        shell.stay(dataset=report.dataset.id)


if __name__ == "__main__":
    page()
