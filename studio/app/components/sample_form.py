"""What to draw: the form of the Sample page, and settings put back into it."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st
from pydantic import ValidationError

from registry.errors import BadInput, StudioError
from registry.records import Adapter, Base, Sample
from studio.app import shell
from studio.app.components import (
    control_pictures,
    given,
    media_form,
    mix,
    more_passes,
    more_settings,
    notice,
    start_picture,
)
from studio.app.components.gallery import answered, pressed
from studio.app.components.mix_file import mix_file
from studio.app.components.start_picture import FOLLOW
from studio.app.words import md
from studio.sampling.defaults import default_size, size_for
from studio.sampling.media.kinds import KINDS, kind_name, word_of
from studio.sampling.request import SampleRequest

SEEDS = 2**32
PENDING = "sample-pending"  # settings to put back before the widgets are made
RESULTS = "samples-grid"  # key of the gallery of results
SHAPES = {"square": "Square", "portrait": "Tall", "landscape": "Wide", "own": "Own size"}
KEPT: Any = "session"


@dataclass(frozen=True)
class Size:
    """Pixels."""

    width: int
    height: int


def put_back(request: dict[str, Any], index: int = 0) -> None:
    """All settings of a picture, its own seed locked, on the next run."""
    # Pictures of a variation share the seed and count the other one up.
    counted = "subseed" if request.get("subseed_strength") else "seed"
    own = {counted: (int(request.get(counted, 0)) + index) % SEEDS}
    st.session_state[PENDING] = {**request, **own}


def apply_pending() -> None:
    """Before any widget is made: what the address asks for, and settings put back."""
    asked = st.query_params.to_dict()
    if asked:
        st.query_params.clear()
        _apply_address(asked)
    if (card := pressed(RESULTS)) is not None:
        _start_from(card)
        answered(RESULTS)
    told = st.session_state.get(PENDING)
    if told is None:
        return
    request: dict[str, Any] = SampleRequest(base=told["base"]).model_dump() | told
    names = ("base", "prompt", "negative", "width", "height", "seed")
    values = {name: request[name] for name in names} | {"lock": True, "shape": "own", "count": 1}
    for name, value in values.items():
        st.session_state[f"s-{name}"] = value
    mix.set_mix([mix.Part.of(choice) for choice in request["adapters"]])
    missing = start_picture.put_back(request)
    if request["kind"]:
        missing += media_form.put_back(request)
    else:
        missing += [*control_pictures.put_back(request["controls"]), *more_settings.put_back(request)]
        more_passes.put_back(request)
        st.session_state[media_form.MOTION] = ""
    if missing:
        notice.leave("All settings are back, but for what is not here.", problems=missing)
    # Not before: the next click may end this run while pictures are read, and the next run begins again.
    del st.session_state[PENDING]


def _start_from(picture: str) -> None:
    """Take the picture `<sample>/<index>` as the one to start from; all else stays."""
    key, _, index = picture.partition("/")
    sample, number = shell.sought(Sample, key), int(index) if index.isdigit() else 0
    try:
        if sample is not None and number < len(sample.files):
            start_picture.use(given.of_sample(sample.files[number]))
    except StudioError as error:
        notice.leave(str(error))


def _apply_address(asked: dict[str, str]) -> None:
    if base := shell.sought(Base, asked.get("base", "")):
        st.session_state["s-base"] = base.id
    if adapter := shell.sought(Adapter, asked.get("adapter", "")):
        mix.set_mix([mix.Part(adapter.id, adapter.recommended_weight)])
        _set_base_for(adapter)
        st.session_state.setdefault("s-prompt", ", ".join(adapter.trigger_words))
    sample, _, index = asked.get("sample", "").partition("/")
    if found := shell.sought(Sample, sample):
        put_back(found.request, int(index) if index.isdigit() else 0)
    if start := asked.get("start"):
        _start_from(start)


def _set_base_for(adapter: Adapter) -> None:
    """The base it was trained on, else any of its family."""
    catalog = shell.workspace().catalog
    base = catalog.find(Base, adapter.base_id) if adapter.base_id else None
    base = base or next(iter(catalog.list(Base, family=adapter.family, part="", limit=1)), None)
    if base is not None:
        st.session_state["s-base"] = base.id


def form(bases: list[Base]) -> dict[str, Any] | None:
    """The widgets; fields of a request when "Make pictures" was pressed, for `request_of`."""
    by_id = {base.id: base for base in bases}
    if st.session_state.get("s-base") not in by_id:
        st.session_state["s-base"] = bases[0].id
    base_id = st.selectbox(
        "Base model",
        list(by_id),
        format_func=lambda key: _called(by_id[key]),
        key="s-base",
        persist_state=KEPT,
    )
    base = by_id[base_id]
    motion = media_form.motion_choice(base)
    kind = kind_name(base, motion)
    values = media_form.media_form(base, kind, motion, _words) if kind else _picture(base)
    seed = _seed()
    count = st.slider("How many" if kind else "How many pictures", 1, 16, key="s-count", persist_state=KEPT)
    if kind:
        values |= media_form.media_more(kind)
    else:
        values |= more_passes.more_passes() | more_settings.more_settings(base)
    label = f"Make a {word_of(kind)}" if kind else "Make pictures"
    if not st.button(
        label, type="primary", icon=":material/brush:", width="stretch", shortcut="Ctrl+Enter", key="s-make"
    ):
        return None
    if not st.session_state.get("s-lock"):
        seed = random.randrange(SEEDS)
        st.session_state["next-seed"] = seed
    return values | {"base": base.id, "seed": seed, "count": count}


def _picture(base: Base) -> dict[str, Any]:
    """What a picture is drawn from: adapters, words, pictures, size."""
    choices = mix.mixer(base.family)
    mix_file(base, choices)
    _trigger_chips()
    values = _words() | {"adapters": choices}
    own = Size(*default_size(shell.workspace(), base))
    started = start_picture.start_picture(min(own.width, own.height))
    controls = control_pictures.control_pictures(base)
    size = _size(base, own, started)
    return values | {"width": size.width, "height": size.height} | started | {"controls": controls}


def _words() -> dict[str, Any]:
    """Prompt and negative prompt."""
    prompt = st.text_area(
        "What to draw (prompt)",
        key="s-prompt",
        height=110,
        persist_state=KEPT,
        placeholder="a red circle on a white background",
    )
    negative = st.text_input("What to avoid (negative prompt)", key="s-negative", persist_state=KEPT)
    return {"prompt": prompt or "", "negative": negative or ""}


def _called(base: Base) -> str:
    """Its name; of what makes no pictures also what it makes."""
    kind = KINDS.get(kind_name(base))
    return f"{base.name} ({kind.medium})" if kind else base.name


def request_of(values: dict[str, Any], folder: Path) -> SampleRequest:
    """The request that the form asks for, its pictures written into `folder`.

    Raises:
        BadInput: something does not fit; in one line.
    """
    try:
        return SampleRequest(**given.written(values, folder))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise BadInput(name, first["msg"].lower(), "change it and try again") from None


def _trigger_chips() -> None:
    words = [word for word in mix.triggers() if word not in st.session_state.get("s-prompt", "")]
    if not words:
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.caption("Call it up with", width="content")
        for word in words:
            st.button(md(word), key=f"chip-{word}", icon=":material/add:", on_click=_add_word, args=(word,))


def _add_word(word: str) -> None:
    prompt = st.session_state.get("s-prompt", "").strip().rstrip(",")
    st.session_state["s-prompt"] = f"{prompt}, {word}" if prompt else word


def _size(base: Base, own: Size, started: dict[str, Any]) -> Size:
    """What is asked for, or follows from the picture; `own` is what the base was made for."""
    start: given.Given | None = started.get("image")
    if "upscale" in started:
        st.caption(f"Tiles of {own.width} × {own.height} pixels")
        return own
    if start is not None and st.toggle("Same shape as the picture", key=FOLLOW, persist_state=KEPT):
        sides = started.get("outpaint", (0, 0, 0, 0))
        fitted = Size(*size_for(shell.workspace(), base, (start.width, start.height), sides))
        st.caption(f"{fitted.width} × {fitted.height} pixels")
        return fitted
    shape = st.segmented_control(
        "Shape",
        list(SHAPES),
        format_func=SHAPES.__getitem__,
        key="s-shape",
        default="square",
        required=True,
        persist_state=KEPT,
    )
    if shape == "own":
        left, right = st.columns(2)
        st.session_state.setdefault("s-width", own.width)
        st.session_state.setdefault("s-height", own.height)
        wide = left.number_input("Width", 16, 4096, step=8, key="s-width", persist_state=KEPT)
        high = right.number_input("Height", 16, 4096, step=8, key="s-height", persist_state=KEPT)
        return Size(int(wide), int(high))
    long, short = _multiple(own.width * 1.22), _multiple(own.height * 0.82)  # the same area, 3:2
    return {"portrait": Size(short, long), "landscape": Size(long, short)}.get(shape or "", own)


def _multiple(pixels: float) -> int:
    return max(16, round(pixels / 8) * 8)


def _seed() -> int:
    if (drawn := st.session_state.pop("next-seed", None)) is not None:
        st.session_state["s-seed"] = drawn
    with st.container(horizontal=True, vertical_alignment="bottom"):
        seed = st.number_input(
            "Seed",
            0,
            SEEDS - 1,
            key="s-seed",
            persist_state=KEPT,
            width="stretch",
            help="The same seed and settings give the same picture",
        )
        st.button("Dice", icon=":material/casino:", help="Another seed", on_click=_dice)
        st.toggle("Lock", key="s-lock", persist_state=KEPT, help="Off: every press of the button draws anew")
    return int(seed or 0)


def _dice() -> None:
    st.session_state["s-seed"] = random.randrange(SEEDS)
