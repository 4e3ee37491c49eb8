"""What the doctor says of a data set: findings with pictures, a fix for each; and what the model sees."""

from typing import TYPE_CHECKING

import streamlit as st

from registry.errors import StudioError
from registry.records import Base, Dataset, Image
from studio.app import shell, state
from studio.app.components.gallery import Card, gallery
from studio.app.routes import crop_url, picture_url
from studio.app.words import md, plural

if TYPE_CHECKING:
    from studio.datasets.crops import Crop, Crops
    from studio.datasets.findings import Finding
    from trainers.recipe import Recipe

SHOWN = 6  # pictures below a finding
PER_PAGE = 24  # crops
MARKS = {
    "bad": ":red[:material/error:]",
    "warn": ":orange[:material/warning:]",
    "info": ":gray[:material/info:]",
}


def doctor_panel(dataset: Dataset) -> None:
    """The examination, what was found, and the last fix."""
    from studio.datasets.doctor import check_dataset

    recipe, base = judged_by()
    pixels = examination(dataset)
    found = check_dataset(shell.workspace(), dataset, recipe, base)
    taken_back(dataset)
    if not found:
        if pixels:
            st.markdown(":green[:material/check_circle:] Nothing to complain about: ready to train.")
        return
    with st.expander(
        f"Before you train: {plural(len(found), 'remark')}", expanded=True, icon=":material/stethoscope:"
    ):
        for finding in found:
            remark(dataset, finding)


def judged_by() -> "tuple[Recipe | None, Base | None]":
    """Recipe and base that were chosen last for training, else the usual ones."""
    from studio.datasets.doctor import usual_base, usual_recipe

    ws = shell.workspace()
    chosen = ws.catalog.find(Base, st.session_state.get("train-base", ""))
    key, goal = chosen.id if chosen else "", st.session_state.get("train-goal") or "style"
    return usual_recipe(ws, key, goal), usual_base(ws, key)


def examination(dataset: Dataset) -> bool:
    """Whether the pixels are known; if not, how far the look at them is, or the button that begins it."""
    from studio.datasets import examining
    from studio.datasets.ingest import images_of

    ws = shell.workspace()
    images = images_of(ws, dataset)
    if not images or examining.known(ws, images) is not None:
        return bool(images)
    if examining.running(ws, dataset) is None and not (why := examining.failed(ws, dataset)):
        if ws.holder() is None or ws.catalog.read_only:
            look_button(dataset, "The pictures were not looked at yet: copies, blur, watermarks.")
            return False
        examining.submit(ws, dataset)  # a worker is there: it begins by itself
    elif examining.running(ws, dataset) is None:
        look_button(dataset, f"The pictures could not be looked at: {why}")
        return False
    looking(dataset)
    return False


def look_button(dataset: Dataset, text: str) -> None:
    """Why nobody has looked, and the button that makes the worker do it."""
    from studio.datasets import examining

    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f":gray[:material/image_search: {md(text)}]", width="stretch")
        if st.button("Look at the pictures", key="examine"):
            with shell.guarded():
                examining.submit(shell.workspace(), dataset)
                state.wake_worker()
                st.rerun()


@st.fragment(run_every=1)
def looking(dataset: Dataset) -> None:
    """Progress; the whole page is shown anew when it ends."""
    from studio.datasets import examining

    ws = shell.workspace()
    job = examining.running(ws, dataset)
    if job is None:
        st.rerun()
    done, total = examining.progress(ws, job)
    text = f"Looking at the pictures: {done} of {total}" if total else "Looking at the pictures"
    st.progress(done / total if total else 0.0, text=text)


def remark(dataset: Dataset, finding: "Finding") -> None:
    """One finding: words, buttons, some of its pictures."""
    words, buttons = st.columns([5, 2], vertical_alignment="center")
    advice = f"  \n:gray[{md(finding.fix)}]" if finding.fix else ""
    words.markdown(f"{MARKS[finding.severity]} {md(finding.message)}{advice}")
    some = 0 < len(finding.images) < dataset.image_count
    with buttons.container(horizontal=True, horizontal_alignment="right", gap="small"):
        if some and st.button("Show", key=f"show-{finding.code}"):
            st.session_state[f"only-{dataset.id}"] = finding.images
        if finding.repair and st.button(finding.repair, key=f"fix-{finding.code}"):
            mend(dataset, finding.code)
    if some and finding.severity != "info":
        thumbs(finding)


def thumbs(finding: "Finding") -> None:
    """The first pictures of a finding, small."""
    catalog = shell.workspace().catalog
    images = catalog.list(Image, id=tuple(finding.images[:SHOWN]), order="position")
    cards = [
        Card(
            id=image.id,
            images=(picture_url("thumb", image.blob),),
            zoom=picture_url("blob", image.blob),
            zoom_text=image.name,
            alt=image.name,
        )
        for image in images
    ]
    gallery(cards, key=f"thumbs-{finding.code}", opens=False, least=88, framed=False)


def mend(dataset: Dataset, code: str) -> None:
    """Do what the button says."""
    from studio.datasets.doctor import fix_finding

    recipe, base = judged_by()
    with shell.guarded():
        done = fix_finding(shell.workspace(), dataset, code, recipe, base)
        shell.note(done.text)
        st.session_state.pop(f"only-{dataset.id}", None)
        st.rerun()


def taken_back(dataset: Dataset) -> None:
    """The last fix, and the button that takes it back."""
    from studio.datasets.fixes import made_fixes, undo

    fixes = made_fixes(shell.workspace(), dataset)
    if not fixes:
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f":gray[:material/healing: {md(fixes[-1].text)}]", width="stretch")
        if st.button("Undo", key="undo-fix", icon=":material/undo:"):
            with shell.guarded():
                undo(shell.workspace(), dataset)
                shell.note("Taken back")
                st.rerun()


def crop_preview(dataset: Dataset) -> None:
    """What the model will see, when somebody asks: buckets, and pictures with the rest dimmed."""
    if not st.toggle("What the model will see", key=f"crops-{dataset.id}"):
        return
    from studio.datasets.crops import crops_of
    from studio.datasets.ingest import images_of

    recipe, base = judged_by()
    if recipe is None or base is None:
        st.caption("Choose a base on the Train page first: sizes and crops depend on it.")
        return
    ws = shell.workspace()
    images = images_of(ws, dataset)
    try:
        crops = crops_of(ws, images, recipe)
    except StudioError as error:
        shell.complain(error)
        return
    st.caption(f"For {md(base.name)} at {recipe.train.resolution} px. What is dark is cut off.")
    buckets(crops)
    shown = [(image, crop) for image in images for crop in crops.shown[image.id]]
    key = f"crops-page-{dataset.id}"
    first = (shell.place(len(shown), PER_PAGE, key) - 1) * PER_PAGE
    cards = [card(image, crop, n) for n, (image, crop) in enumerate(shown[first : first + PER_PAGE])]
    gallery(cards, key=f"crops-of-{dataset.id}", opens=False, least=150, fit="contain")
    shell.pager(len(shown), PER_PAGE, key)


def buckets(crops: "Crops") -> None:
    """How many pictures each size has."""
    with st.grid("auto", min_column_width=110, gap="small"):
        for (wide, high), count in list(crops.buckets.items())[:12]:
            with st.container():
                shell.fact(f"{wide} × {high}", plural(count, "picture"))
    more = len(crops.buckets) - 12
    if more > 0:
        st.caption(f"and {plural(more, 'other size')}")


def card(image: Image, crop: "Crop", number: int) -> Card:
    """One crop."""
    wide, high = crop.bucket
    said = (f"{wide} × {high} of {image.width} × {image.height}", f"keeps {crop.kept:.0%}")
    return Card(
        id=f"{image.id}-{number}",
        title=image.name,
        lines=said,
        images=(crop_url(image, crop.box),),
        zoom=picture_url("blob", image.blob),
        zoom_text=image.caption,
        alt=image.name,
        badges=(("enlarged", "warn"),) if crop.scale > 1 else (),
    )
