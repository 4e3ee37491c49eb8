"""The mask of one picture: what of it counts in training."""

import streamlit as st

from registry.records import Dataset, Image
from studio.app import shell
from studio.app.components.upload import PICTURES
from studio.app.routes import picture_url
from studio.app.words import md


@st.dialog("Mask", icon=":material/contrast:")
def mask_dialog(dataset: Dataset, image: Image) -> None:
    """Give the picture a mask, another one, or none."""
    mask_form(dataset, image)


def mask_form(dataset: Dataset, image: Image) -> None:
    """What is in the dialog."""
    from studio.datasets.ingest import set_mask

    st.markdown(f"**{md(image.name)}** :gray[{image.width}×{image.height}]")
    shown = [picture_url("thumb", image.blob)]
    if image.mask:
        shown.append(picture_url("thumb", image.mask))
    st.html("".join(f'<img src="{url}" alt="" style="width:48%;object-fit:contain">' for url in shown))
    given = st.file_uploader(
        "Grey picture of the same shape",
        PICTURES,
        key=f"mask-{image.id}",
        help="White counts.",
    )
    with st.container(horizontal=True):
        if st.button("Use this mask", type="primary", disabled=given is None) and given is not None:
            with shell.guarded():
                set_mask(shell.workspace(), dataset, image.id, (given.name, given.getvalue()))
                shell.note(f"{image.name} has a mask")
                st.rerun()
        if image.mask and st.button("No mask", key=f"unmask-{image.id}"):
            with shell.guarded():
                set_mask(shell.workspace(), dataset, image.id, None)
                shell.note(f"{image.name} has no mask any more")
                st.rerun()
