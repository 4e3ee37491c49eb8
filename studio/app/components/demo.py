"""The demo from a page: pictures drawn here, ready to train on the base that is shipped."""

import io

import streamlit as st

from registry.records import Dataset
from studio.app import shell

NAME = "demo-neon"
COUNT = 24
SEED = 1


def demo_button(key: str) -> None:
    """A button that makes the demo's data set and opens Train with everything chosen."""
    if not st.button("Try the demo", key=f"demo-{key}", icon=":material/play_arrow:"):
        return
    with shell.guarded():
        if shell.workspace().catalog.find(Dataset, NAME) is None:
            with st.spinner("Drawing the demo's pictures"):
                make_demo_dataset()
        shell.go("train", dataset=NAME, base="pocket", goal="style")


def make_demo_dataset() -> Dataset:
    """A data set of neon signs with captions, as if somebody had dropped the files."""
    from studio.datasets.ingest import create_dataset
    from studio.pocket.pictures import TRIGGERS, demo_set

    uploads: list[tuple[str, bytes]] = []
    for index, (picture, caption) in enumerate(demo_set("style", COUNT, SEED)):
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        uploads.append((f"{index:02d}.png", buffer.getvalue()))
        uploads.append((f"{index:02d}.txt", caption.encode()))
    return create_dataset(shell.workspace(), NAME, uploads, trigger=TRIGGERS["style"]).dataset
