"""What a control picture can be, as a table that costs no import: command line and pages list it.

A kind turns a picture into the map that a network was trained to read. Kinds with a `model` load one, from
a local folder or the hub; all others need nothing but the picture.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from registry.errors import BadInput


@dataclass(frozen=True)
class ControlKind:
    """One kind of map.

    Args:
        name: As a request says it.
        about: What the map shows, one line.
        function: "module:name" in this package, takes and gives an RGB picture; with `model` also the folder.
        model: Hub id of the model that draws the map when none is given; "" = it needs none.
        words: What published networks of this kind have in their names, the name of the kind included.
        modes: Family -> number by which a union network of that family is told the kind.
    """

    name: str
    about: str
    function: str
    model: str = ""
    words: tuple[str, ...] = ()
    modes: Mapping[str, int] = field(default_factory=dict[str, int])


# Numbers of modes: xinsir's ControlNet++ for SDXL, InstantX' and Shakker's unions for FLUX.1.
KINDS: dict[str, ControlKind] = {
    kind.name: kind
    for kind in (
        ControlKind("canny", "edges (Canny)", "edges:canny", words=("canny",), modes={"sdxl": 3, "flux1": 0}),
        ControlKind("lineart", "lines of a drawing, white on black", "edges:lineart",
                    words=("lineart", "line-art", "mlsd"), modes={"sdxl": 3}),
        ControlKind("softedge", "soft edges", "edges:softedge", words=("softedge", "hed", "pidinet"),
                    modes={"sdxl": 2}),
        ControlKind("scribble", "thick strokes, as drawn by hand", "edges:scribble",
                    words=("scribble", "sketch"), modes={"sdxl": 2}),
        ControlKind("depth", "how near things are (Depth Anything or DPT)", "reading:depth",
                    model="depth-anything/Depth-Anything-V2-Small-hf", words=("depth", "zoe", "midas"),
                    modes={"sdxl": 1, "flux1": 2}),
        ControlKind("pose", "skeletons of people (ViTPose)", "reading:pose",
                    model="usyd-community/vitpose-base-simple", words=("openpose", "pose"),
                    modes={"sdxl": 0, "flux1": 4}),
        ControlKind("tile", "the picture itself, for networks that add detail", "plain:same",
                    words=("tile",), modes={"sdxl": 6, "flux1": 1}),
        ControlKind("blur", "the picture, blurred", "plain:blur", words=("blur",), modes={"flux1": 3}),
        ControlKind("gray", "the picture without colour", "plain:gray",
                    words=("gray", "grey", "recolor", "colorize"), modes={"flux1": 5}),
        ControlKind("inpaint", "the picture with a hole where the mask is white", "plain:same",
                    words=("inpaint", "repaint"), modes={"sdxl": 7}),
        ControlKind("none", "the picture as it is: a finished map of any kind", "plain:same"),
    )
}  # fmt: skip
HOLE = "inpaint"  # the kind whose map has a hole, which no picture file can hold
UNION = "union"  # variant of a network that reads several kinds
ANY = "any"  # variant of a network whose name does not say what it reads


def control_kind(name: str) -> ControlKind:
    """The row of a kind.

    Raises:
        BadInput: no such kind.
    """
    if name not in KINDS:
        raise BadInput(f"control {name[:40]!r}", "is no kind of control", f"use one of {', '.join(KINDS)}")
    return KINDS[name]


def kinds_help() -> str:
    """All kinds in one line, for `--help`."""
    return ", ".join(KINDS)


def kind_in_name(name: str) -> str:
    """What a network reads, by its file or folder name: a kind, `UNION` or `ANY`."""
    lower = name.lower()
    if "union" in lower or "promax" in lower:
        return UNION
    found = [
        (lower.rindex(word), kind.name) for kind in KINDS.values() for word in kind.words if word in lower
    ]
    return max(found)[1] if found else ANY
