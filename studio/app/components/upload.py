"""Files from the browser into a data set, with progress."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import streamlit as st

from studio.app.words import plural

if TYPE_CHECKING:
    from studio.datasets.ingest import IngestReport

PICTURES = ("png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff", "avif")
ENDINGS = (
    "png",
    "jpg",
    "jpeg",
    "webp",
    "bmp",
    "tif",
    "tiff",
    "avif",
    "zip",
    "txt",
    "caption",
    "jsonl",
    "csv",
)
MASKS = (
    "A mask says what of a picture counts: white does, black does not. A file is known as a mask by its name "
    "alone: `001-masklabel.png`, `001_mask.png` or `001.mask.png` beside `001.jpg`, or `masks/001.png` in a "
    "zip. Any size will do as long as the shape is the picture's. A mask of another name is given to its "
    "picture later, on the page of the data set."
)
Work = Callable[[Sequence[tuple[str, bytes]], Callable[[int, int], None]], "IngestReport"]


def pictures_field(key: str) -> list[Any]:
    """Where pictures, captions and zips are dropped."""
    return st.file_uploader(
        "Drop pictures, captions or a zip",
        ENDINGS,
        accept_multiple_files=True,
        key=key,
        help="PNG, JPEG, WebP, BMP, TIFF, AVIF; a zip of a folder; captions as .txt or metadata.jsonl",
    )


def about_masks() -> None:
    """How masks are told from pictures, where both are dropped."""
    with st.expander("Masks: only a part of a picture should count?", icon=":material/contrast:"):
        st.markdown(MASKS)


def with_progress(files: Sequence[Any], work: Work) -> "IngestReport":
    """Run `work` on the uploads while a bar shows how far it is."""
    bar = st.progress(0.0, text=f"Reading {plural(len(files), 'file')}")

    def say(done: int, total: int) -> None:
        bar.progress(done / total if total else 0.0, text=f"Pictures read: {done:,} of {total or '?'}")

    try:
        return work([(file.name, file.getvalue()) for file in files], say)
    finally:
        bar.empty()
