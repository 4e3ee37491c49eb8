"""ControlNet as clients of A1111 send it, and the lists under `/controlnet` that they choose from.

Names and meanings are those of the extension sd-webui-controlnet (its page "API"). A module of it that means
the same as a kind of ours goes by that name; others are refused rather than replaced by something alike.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import APIRouter

from registry.errors import BadInput
from registry.records import Base
from studio.api.pictures import open_picture
from studio.api.sdapi_models import Img2Img, Txt2Img
from studio.api.sdapi_pictures import file_of
from studio.app import state
from studio.bases import list_parts
from studio.sampling.control.kinds import KINDS
from studio.sampling.metadata.said import entries, items, number
from studio.workspace import Workspace

PREFIX = "/controlnet"
VERSION = 2  # of the extension's interface
# Modules of the extension that do what a kind of ours does; all kinds are modules under their own names.
MODULES = {
    "lineart_standard": "lineart",
    "lineart_standard (from white bg & black line)": "lineart",
    "depth_anything_v2": "depth",
    "openpose": "pose",
    "tile_resample": "tile",
    "recolor_luminance": "gray",
    "inpaint_global_harmonious": "inpaint",
}
RESIZE = {
    "just resize": 0,
    "crop and resize": 1,
    "resize and fill": 2,
    "inner fit (scale to fit)": 1,
    "scale to fit (inner fit)": 1,
    "outer fit (shrink to fit)": 2,
    "envelope (outer fit)": 2,
}
JUST_RESIZE, CROP, FILL = 0, 1, 2
MODES = {"balanced": 0, "my prompt is more important": 1, "controlnet is more important": 2}
BALANCED, PROMPT_FIRST, CONTROL_FIRST = 0, 1, 2
ALIASES = {"input_image": "image", "guidance": "guidance_end", "lowvram": "low_vram", "mask_image": "mask",
           "guess_mode": "guessmode"}  # fmt: skip
READ = {"enabled", "image", "module", "model", "weight", "guidance_start", "guidance_end", "guessmode",
        "control_mode", "resize_mode", "processor_res", "threshold_a", "threshold_b", "pixel_perfect",
        }  # fmt: skip
NO_MATTER = {"low_vram", "is_ui", "save_detected_map"}  # change no picture
# What says nothing: the extension's defaults, beside null, false and "". -1 is its own default.
DEFAULTS = {"hr_option": ("both",), "input_mode": ("simple",), "pulid_mode": ("fidelity",),
            "inpaint_crop_input_image": (True,)}  # fmt: skip
SIDES = (-1, 0, 512)  # processor_res: nobody chose it
# Thresholds of Canny: nobody chose them, ours, and what a client in Python (webuiapi) sends of itself.
EDGES = ((-1, -1), (100, 200), (64, 64))
FINEST = 1  # threshold_a of tile_resample: the picture as it is; above 8 the extension takes this as well
router = APIRouter()


@router.get("/version")
def version() -> dict[str, int]:
    """Of the extension's interface that is answered here."""
    return {"version": VERSION}


@router.get("/model_list")
def model_list() -> dict[str, list[str]]:
    """Networks of the catalog, of all families."""
    return {"model_list": [title_of(net) for net in list_parts(state.current())]}


@router.get("/module_list")
def module_list() -> dict[str, Any]:
    """What makes a map of a picture."""
    names = ["none", *(name for name in KINDS if name != "none"), *MODULES]
    detail = {name: {"model_free": name == "none", "sliders": []} for name in names}
    return {"module_list": names, "module_detail": detail}


def title_of(net: Base) -> str:
    """As the extension names networks: name, and eight digits of the hash."""
    return f"{net.name} [{net.weight_hash[:8]}]" if net.weight_hash else net.name


def controls_of(ws: Workspace, body: Txt2Img, arguments: Any, folder: Path) -> list[dict[str, Any]]:
    """Choices of controls for the units of a request; pictures become files in `folder`.

    Raises:
        BadInput: a unit asks for something that has no counterpart here; names its field.
    """
    if arguments and not isinstance(arguments, list):
        raise BadInput("controlnet.args", "is no list", "send one of units")
    found: list[dict[str, Any]] = []
    for index, one in enumerate(items(arguments)):
        if not isinstance(one, dict):
            raise BadInput(f"controlnet.{index}", "is no object", "send a unit with image, module and model")
        unit = {ALIASES.get(key, key): value for key, value in entries(one).items() if value is not None}
        if unit.get("enabled", True):
            found.append(_Unit(ws, body, unit, f"controlnet.{index}").choice(folder))
    return found


class _Unit:
    """One unit of a request.

    Args:
        ws: Where its network is.
        body: The request.
        unit: Its values, without nulls.
        where: Its name in errors.
    """

    def __init__(self, ws: Workspace, body: Txt2Img, unit: Mapping[str, Any], where: str) -> None:
        self._ws, self._body, self._unit, self._where = ws, body, unit, where

    def choice(self, folder: Path) -> dict[str, Any]:
        """As a request of ours has it."""
        self._refuse_others()
        module = str(self._unit.get("module") or "none").casefold()
        kind = MODULES.get(module, module)
        if kind not in KINDS:
            raise self._fault("module", module[:60], "is unknown", "see /controlnet/module_list")
        net = self._net()
        finished = kind == "none"
        if finished and net is not None and net.variant in KINDS:
            kind = net.variant  # a finished map of what the network reads
        if not finished:
            self._check_map(module)
        return {
            "kind": kind,
            "model": net.id if net else "",
            "image": self._picture(folder),
            "weight": self._number("weight", 1.0),
            "start": self._number("guidance_start", 0.0),
            "end": self._number("guidance_end", 1.0),
            "preprocess": not finished,
            "guess": self._guess(),
        }

    def _refuse_others(self) -> None:
        for name, value in self._unit.items():
            if name in READ | NO_MATTER or value in (False, "", [], {}):
                continue
            said = value.casefold() if isinstance(value, str) else value
            without = name == "hr_option" and not self._body.enable_hr
            if not without and said not in DEFAULTS.get(name, ()):
                raise BadInput(f"{self._where}.{name}", "is not built in here", "leave it out")
        if self._unit.get("inpaint_crop_input_image") is False:
            raise BadInput(f"{self._where}.inpaint_crop_input_image", "cannot be turned off", "leave it out")

    def _net(self) -> Base | None:
        """The network that is named; None = the only one that reads the kind."""
        name = str(self._unit.get("model") or "None")
        if name.casefold() == "none":
            return None
        plain = name.rpartition(" [")[0] or name
        for net in list_parts(self._ws):
            if name in (title_of(net), net.name, net.id) or plain == net.name:
                return net
        raise self._fault("model", name[:80], "is not in the catalog", "see /controlnet/model_list")

    def _check_map(self, module: str) -> None:
        """Maps are made at the size of the drawing, with fixed thresholds."""
        side = self._number("processor_res", -1)
        own = (*SIDES, min(self._body.width, self._body.height))
        if side not in own and not self._unit.get("pixel_perfect"):
            do = "send pixel_perfect: true, or leave it out"
            raise self._fault("processor_res", f"{side:g}", "is not built in here", do)
        first, second = self._number("threshold_a", -1), self._number("threshold_b", -1)
        if module == "canny" and (first, second) not in EDGES:
            said = f"{first:g}, {second:g}"
            raise self._fault("threshold_a, threshold_b", said, "are not built in here", "send 100 and 200")
        if module == "tile_resample" and FINEST < first <= 8:
            raise self._fault("threshold_a", f"{first:g}", "is not built in here", f"send {FINEST}")

    def _picture(self, folder: Path) -> str:
        """The unit's picture as a file, stretched where that is asked; of img2img, without one, its own."""
        text, what = self._sent(), f"{self._where}.image"
        size = (self._body.width, self._body.height)
        picture = open_picture(text, what)
        same = picture.width * size[1] == picture.height * size[0]
        mode = self._choice("resize_mode", RESIZE, CROP)
        if mode == FILL and not same:
            do = "send Crop and Resize or Just Resize, or a picture of the drawing's shape"
            raise BadInput(f"{self._where}.resize_mode", "is not built in here: Resize and Fill", do)
        return file_of(text, folder, what, size if mode == JUST_RESIZE else None)

    def _sent(self) -> str:
        image: Any = self._unit.get("image")
        if isinstance(image, Sequence) and not isinstance(image, str):
            image = dict(zip(("image", "mask"), image, strict=False))
        if isinstance(image, dict):
            if entries(image).get("mask"):
                raise BadInput(f"{self._where}.mask", "is not built in here", "leave it out")
            image = entries(image).get("image")
        if not image and isinstance(self._body, Img2Img) and self._body.init_images:
            image = self._body.init_images[0]
        if not isinstance(image, str) or not image:
            raise BadInput(f"{self._where}.image", "is missing", "send the picture's file as base64")
        return image

    def _guess(self) -> bool:
        usual = CONTROL_FIRST if self._unit.get("guessmode") else BALANCED  # what it was called before
        mode = self._choice("control_mode", MODES, usual)
        if mode == PROMPT_FIRST:
            do = "send Balanced or ControlNet is more important"
            raise self._fault("control_mode", "My prompt is more important", "is not built in here", do)
        return mode == CONTROL_FIRST

    def _choice(self, name: str, names: Mapping[str, int], usual: int) -> int:
        """A number, or the words that stand for it."""
        value = self._unit.get(name, usual)
        chosen = names.get(value.casefold(), -1) if isinstance(value, str) else value
        if chosen not in names.values() or isinstance(chosen, float):
            raise self._fault(name, str(value)[:60], "is unknown", f"send one of {', '.join(names)}")
        return int(chosen)

    def _number(self, name: str, usual: float) -> float:
        value = number(self._unit.get(name, usual))
        if value is None:
            raise BadInput(f"{self._where}.{name}", "is no number", f"send {usual:g}, or leave it out")
        return value

    def _fault(self, name: str, value: str, wrong: str, do: str) -> BadInput:
        return BadInput(f"{self._where}.{name} {value!r}", wrong, do)
