"""Pictures that a request is given: dropped on the page, or files of a sample; shown, taken out, written.

They live in the session as `Given`, so they outlast a change of page, and become files only while a request
is sent: `submit` keeps its own copy.
"""

import base64
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st
from PIL import Image

from registry.errors import BadInput, StudioError
from registry.files import inside
from studio.app import shell
from studio.app.components.gallery import Card, gallery
from studio.app.words import md

ENDINGS = ("png", "jpg", "jpeg", "webp")
SHOWN = 1024  # pixels on the longer side of what the browser is given
SAMPLES = "samples/"
_UNSAFE = re.compile(r"[^\w. -]")


@dataclass(frozen=True)
class Given:
    """One picture: `data` when it was dropped here, `path` when it is a file of a sample."""

    name: str
    width: int = 0
    height: int = 0
    shown: str = ""  # data URL, at most SHOWN pixels
    mark: str = ""  # hash of its pixels
    data: bytes = b""
    path: str = ""  # relative to the workspace

    @property
    def called(self) -> str:
        """How the page calls it."""
        if not self.path:
            return self.name
        made_here = Path(self.path).stem.isdigit()  # 000.png, not image.png or mask.png
        return "A picture made here" if made_here else "The picture of that sample"


def take(name: str, data: bytes, *, mask: bool = False, path: str = "") -> Given:
    """Examine a picture and make the small one that is shown.

    Raises:
        BadInput: it cannot be used; in one line.
    """
    from studio.datasets.decode import Decoders

    with Decoders(1) as decoders:
        found = decoders.decode(data, name, "mask" if mask else "picture")
    with Image.open(io.BytesIO(found.data)) as picture:
        small = picture.convert("L" if mask else "RGB")
    small.thumbnail((SHOWN, SHOWN))
    buffer = io.BytesIO()
    # Few pixels are shown large: JPEG would be seen.
    kind = "PNG" if mask or max(small.size) <= 256 else "JPEG"
    small.save(buffer, kind, **({"quality": 88} if kind == "JPEG" else {}))
    url = f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
    kept = b"" if path else data
    return Given(name, found.width, found.height, url, found.pixel_hash, kept, path)


def of_sample(path: str, *, mask: bool = False) -> Given:
    """A picture in the folder of a sample.

    Raises:
        BadInput: it is no file of a sample of this workspace (settings come from foreign pictures, too).
    """
    from studio.datasets.decode import read_file

    if not path.startswith(SAMPLES):
        raise BadInput(path, "is no file of a sample here", "drop the picture again")
    file = inside(shell.workspace().home / SAMPLES, path.removeprefix(SAMPLES))
    return take(file.name, read_file(file, path), mask=mask, path=path)


def current(slot: str) -> Given | None:
    """What is in a place for a picture."""
    return st.session_state.get(f"given-{slot}")


def put(slot: str, given: Given | None) -> None:
    """Fill a place for a picture, or empty it."""
    st.session_state[f"given-{slot}"] = given
    st.session_state.pop(f"refused-{slot}", None)


def field(
    slot: str,
    label: str,
    *,
    help: str = "",
    mask: bool = False,
    show: bool = True,
    then: Callable[[], None] | None = None,
) -> Given | None:
    """Where a picture is dropped; once it is there, the picture and a way to take it out.

    Args:
        slot: Name of the place, unique on the page.
        label: What belongs here.
        help: More about it.
        mask: Its grey values are what counts.
        show: Whether the picture is shown here, or by the caller.
        then: Called when another picture has come.
    """
    given = current(slot)
    if given is None:
        times = st.session_state.get(f"times-{slot}", 0)
        dropped = st.file_uploader(label, ENDINGS, key=f"s-{slot}-file-{times}", help=help or None)
        if dropped is not None:
            _take_in(slot, dropped, mask, then)
        if (refused := st.session_state.get(f"refused-{slot}")) is not None:
            shell.complain(refused)
        return None
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"{md(given.called)} :gray[{given.width} × {given.height}]", width="stretch")
        st.button("Take it out", key=f"out-{slot}", type="tertiary", on_click=put, args=(slot, None))
    if show:
        card = Card(id=slot, images=(given.shown,), zoom=given.shown, alt=given.called)
        gallery([card], key=f"shown-{slot}", opens=False, least=150, fit="contain", framed=False)
    return given


def panel(label: str, icon: str, name: str, *, used: bool) -> Any:
    """A part of the form that is closed until it is used or opened."""
    key = f"s-open-{name}"
    if used:
        st.session_state.setdefault(key, True)
    return st.expander(label, icon=icon, key=key, on_change="rerun")


def written(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Fields of a request with paths in place of pictures; those of samples stay where they are.

    Raises:
        BadInput: one is missing.
    """
    ready = dict(values)
    if "mask" in ready and ready["mask"] is None:
        do = "paint over what is to change, or switch off “Change only a part”"
        raise BadInput("mask", "is empty", do)
    if "image" in ready and ready["image"] is None:
        raise BadInput("image", "is missing: this base starts from a picture", "drop one into the form")
    for name in ("image", "mask"):
        if name in ready:
            ready[name] = _file(ready[name], folder / name)
    ready["controls"] = [
        control | {"image": _control_file(control, folder / f"control-{index}")}
        for index, control in enumerate(values.get("controls", ()))
    ]
    return ready


def _control_file(control: dict[str, Any], folder: Path) -> str:
    if control["image"] is None:
        wrong = "has no picture"
        raise BadInput(
            f"control {control['kind']}", wrong, "drop one under “Steer by a picture”, or leave it out"
        )
    return _file(control["image"], folder)


def _file(given: Given, folder: Path) -> str:
    if given.path:
        return given.path
    folder.mkdir()
    path = folder / (_UNSAFE.sub("_", Path(given.name).name)[-80:] or "picture")
    path.write_bytes(given.data)
    return str(path)


def _take_in(slot: str, dropped: Any, mask: bool, then: Callable[[], None] | None) -> None:
    """Examine what was dropped; then a fresh, empty field, also when it is refused.

    Not in a callback: a click meanwhile would end it for good, where the next run of the script finds the
    file still in its field.
    """
    try:
        found = take(dropped.name, dropped.getvalue(), mask=mask)
        if then is not None:
            then()
        put(slot, found)
    except StudioError as error:
        st.session_state[f"refused-{slot}"] = error
    st.session_state[f"times-{slot}"] = st.session_state.get(f"times-{slot}", 0) + 1
    st.rerun()
