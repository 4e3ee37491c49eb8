"""One data set: pictures with their captions, the doctor's findings, what to do with it."""

from typing import Any

import streamlit as st

from registry.errors import StudioError
from registry.records import Dataset, Image, Run
from studio.app import shell
from studio.app.components import upload
from studio.app.components.captioner import caption_dialog
from studio.app.components.cards import adapter_card
from studio.app.components.chain import notes
from studio.app.components.doctor_panel import crop_preview, doctor_panel
from studio.app.components.gallery import Card, gallery
from studio.app.components.mask_dialog import mask_dialog
from studio.app.routes import picture_url
from studio.app.words import ago, md, plural

PER_PAGE = 24


def show(dataset: Dataset) -> None:
    """The whole page."""
    if st.button("All data sets", icon=":material/arrow_back:", type="tertiary"):
        shell.stay()
    shell.heading(md(dataset.name))
    trigger = f" · trigger word **{md(dataset.trigger)}**" if dataset.trigger else ""
    st.markdown(f"{plural(dataset.image_count, 'picture')}{trigger} :gray[· added {ago(dataset.created_at)}]")
    with st.container(horizontal=True):
        if st.button("Train on these", type="primary", icon=":material/model_training:"):
            shell.go("train", dataset=dataset.id)
        if st.button("Add pictures", icon=":material/add_photo_alternate:"):
            add_dialog(dataset)
        if st.button("Write captions", icon=":material/auto_awesome:"):
            caption_dialog(dataset)
        if st.button("Trigger word", icon=":material/key:"):
            trigger_dialog(dataset)
        if st.button("Remove", icon=":material/delete:"):
            remove_dialog(dataset)
    undo(dataset)
    ingest_report(dataset)
    doctor_panel(dataset)
    crop_preview(dataset)
    trained(dataset)
    notes(dataset)
    pictures(dataset)


def trained(dataset: Dataset) -> None:
    """Adapters of the runs on it."""
    catalog = shell.workspace().catalog
    runs = catalog.list(Run, dataset_id=dataset.id)
    adapters = catalog.lineage.of_runs([run.id for run in runs])
    if not adapters:
        return
    with st.expander(f"Trained on it: {plural(len(adapters), 'adapter')}", icon=":material/account_tree:"):
        cards = [adapter_card(adapter) for adapter in adapters[:PER_PAGE]]
        if opened := gallery(cards, key="dataset-adapters", least=150):
            shell.go("adapters", adapter=opened)


def ingest_report(dataset: Dataset) -> None:
    """What was left out on the way in, until the page is left."""
    report = st.session_state.get(f"report-{dataset.id}")
    if report is None or not (report.refused or report.notes):
        return
    with st.container(key="panel-report"):
        for name, problem in report.refused:
            st.markdown(f":orange[:material/warning:] **{md(name)}** was left out: {md(problem)}")
        for line in report.notes:
            st.markdown(f":gray[:material/info:] {md(line)}")
        if st.button("Understood", key="report-seen"):
            st.session_state.pop(f"report-{dataset.id}")
            st.rerun()


def pictures(dataset: Dataset) -> None:
    """A page of pictures, each with its caption to edit."""
    catalog = shell.workspace().catalog
    only = st.session_state.get(f"only-{dataset.id}", ())
    chosen: dict[str, Any] = {"dataset_id": dataset.id} | ({"id": tuple(only)} if only else {})
    total, key = catalog.count(Image, **chosen), f"page-{dataset.id}"
    offset = (shell.place(total, PER_PAGE, key) - 1) * PER_PAGE
    images = catalog.list(Image, order="position", limit=PER_PAGE, offset=offset, **chosen)
    st.subheader("Pictures and captions", anchor=False)
    st.caption("Say what can be seen, not what should be learned. Saved when you leave the field.")
    upload.about_masks()
    if only and st.button("Show all pictures", key="show-all", icon=":material/grid_view:"):
        st.session_state.pop(f"only-{dataset.id}")
        st.rerun()
    with st.grid("auto", min_column_width=220, gap="small"):
        for image in images:
            with st.container(border=True, gap="xsmall"):
                picture(dataset, image)
    shell.pager(total, PER_PAGE, key)


def picture(dataset: Dataset, image: Image) -> None:
    """One picture with its caption, file name and size."""
    card = Card(
        id=image.id,
        images=(picture_url("thumb", image.blob),),
        zoom=picture_url("blob", image.blob),
        zoom_text=image.caption,
        alt=image.name,
    )
    gallery(
        [card], key=f"picture-{image.id}", opens=False, least=0, ratio="4 / 3", fit="contain", framed=False
    )
    key = f"caption-{image.id}"
    st.text_area(
        f"Caption of picture {image.position + 1}",
        image.caption,
        key=key,
        height=90,
        label_visibility="collapsed",
        placeholder="What does this picture show?",
        on_change=save_caption,
        args=(dataset, image.id, key),
    )
    st.caption(facts(dataset, image), help=remarks(dataset, image) or None)
    with st.container(horizontal=True, horizontal_alignment="distribute", gap="small"):
        if st.button("Mask", key=f"mask-of-{image.id}", type="tertiary"):
            mask_dialog(dataset, image)
        if st.button("Uses", key=f"uses-of-{image.id}", type="tertiary", help="Which adapters hold it"):
            shell.go("adapters", picture=image.pixel_hash)
        if st.button("Leave out", key=f"drop-{image.id}", type="tertiary"):
            remove_picture(dataset, image)


def save_caption(dataset: Dataset, image_id: str, key: str) -> None:
    """One caption, at once."""
    from studio.datasets.ingest import set_captions

    try:
        set_captions(shell.workspace(), dataset, {image_id: st.session_state[key]})
    except StudioError as error:
        st.session_state["caption-error"] = error
    else:
        shell.note("Caption saved")


def facts(dataset: Dataset, image: Image) -> str:
    """File name, size and what else is said about a picture, in one line."""
    from studio.datasets.seen import seen_captions

    count = len(seen_captions(dataset, image))
    return " · ".join(
        part
        for part in (
            md(image.name),
            f"{image.width}×{image.height}",
            "mask" if image.mask else "",
            f"{image.repeats} times an epoch" if image.repeats != 1 else "",
            f"weight {image.weight:g}" if image.weight != 1 else "",
            plural(count, "version") if count > 1 else "",
        )
        if part
    )


def remarks(dataset: Dataset, image: Image) -> str:
    """What was converted, and the caption as training sees it."""
    from studio.datasets.seen import seen_captions

    seen = seen_captions(dataset, image)
    lines = [md(image.note)] if image.note else []
    if seen != (image.caption,) and any(seen):
        lines += ["Training sees:", *(f"{md(text)}" for text in seen[:8])]
    return "  \n".join(lines)


def remove_picture(dataset: Dataset, image: Image) -> None:
    """Leave one picture out; it can be brought back at once."""
    from studio.datasets.ingest import images_of, remove_images

    images = images_of(shell.workspace(), dataset)
    with shell.guarded():
        remove_images(shell.workspace(), dataset, [image.id])
        st.session_state[f"undo-{dataset.id}"] = images
        shell.note(f"{image.name} is left out")
        st.rerun()


def undo(dataset: Dataset) -> None:
    """Bring back the picture that was just left out; errors of a caption that could not be saved."""
    if (error := st.session_state.pop("caption-error", None)) is not None:
        shell.complain(error)
    before = st.session_state.get(f"undo-{dataset.id}")
    if before and st.button("Bring the last picture back", icon=":material/undo:", key="undo-picture"):
        with shell.guarded():
            shell.workspace().catalog.replace_images(dataset.id, before)
            st.session_state.pop(f"undo-{dataset.id}")
            st.rerun()


@st.dialog("Add pictures", icon=":material/add_photo_alternate:")
def add_dialog(dataset: Dataset) -> None:
    """More files for this data set."""
    files = upload.pictures_field(f"more-{dataset.id}")
    upload.about_masks()
    if st.button("Add", type="primary", disabled=not files):
        from studio.datasets.ingest import add_images

        with shell.guarded():
            report = upload.with_progress(
                files, lambda sources, say: add_images(shell.workspace(), dataset, sources, progress=say)
            )
            st.session_state[f"report-{dataset.id}"] = report
            shell.note(f"{plural(report.added, 'picture')} added")
            st.rerun()


@st.dialog("Trigger word", icon=":material/key:")
def trigger_dialog(dataset: Dataset) -> None:
    """The word that will call up what is learned."""
    with st.form("trigger", border=False):
        word = st.text_input(
            "Trigger word", dataset.trigger, max_chars=60, placeholder="A made-up word, such as zibbo"
        )
        if st.form_submit_button("Save", type="primary"):
            with shell.guarded():
                from studio.datasets.ingest import set_trigger

                set_trigger(shell.workspace(), dataset, word or "")
                shell.note("Saved")
                st.rerun()


@st.dialog("Remove this data set?")
def remove_dialog(dataset: Dataset) -> None:
    """Cannot be undone, so it is asked; runs keep their own list."""
    runs = shell.workspace().catalog.count(Run, dataset_id=dataset.id)
    st.markdown(
        f"**{md(dataset.name)}** with {plural(dataset.image_count, 'picture')} and captions goes for good."
    )
    if runs:
        st.caption(f"{plural(runs, 'run')} made from it and their adapters stay: they keep their own list.")
    if st.button("Remove for good", type="primary"):
        with shell.guarded():
            shell.workspace().catalog.delete(Dataset, dataset.id)
            shell.note(f"{dataset.name} is removed")
            st.query_params.clear()
            st.rerun()
