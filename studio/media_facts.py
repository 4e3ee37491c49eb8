"""What a folder that makes video, sound or 3D is: found out from its configs, never by loading weights.

They stand in the catalog beside the bases, as `Base.part` says: "video", "sound", "3d", and "motion" for a
motion adapter, which makes a base for pictures move. Nothing that needs a base for pictures takes them.
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, cast

from registry.errors import BadInput
from registry.formats.header import read_header
from studio.base_facts import PICKLES, refuse_code
from studio.base_kinds import BaseFacts, config_of
from studio.sampling.media.kinds import ANIMATES, KINDS, MOTION, Kind
from trainers.families import FAMILIES

_LIBRARIES = ("diffusers", "transformers")
_NO_WEIGHTS = (
    "Scheduler",
    "Tokenizer",
    "TokenizerFast",
    "Processor",
    "FeatureExtractor",
)  # ends of class names
_WORDS = ("tokenizer.json", "vocab.json", "spiece.model", "sentencepiece.bpe.model")  # one of them is there
_LEVELS = 4  # of the UNet that SD1.5 is made of; SDXL's has three


def media_facts(path: Path, family: str = "", *, files: Sequence[str] | None = None) -> BaseFacts | None:
    """Facts of such a folder; None when `path` is something else.

    Args:
        path: A folder in diffusers layout.
        family: As given by the person, or as it was found before; "" = not.
        files: Relative names of all files, when the weights are not there yet (a hub id).

    Raises:
        BadInput: it is one, but cannot be used: code, pickles or foreign classes inside, weights missing.
    """
    if not path.is_dir():
        return None
    names = files or [file.relative_to(path).as_posix() for file in sorted(path.rglob("*"))]
    if not (path / "model_index.json").is_file():
        return _motion_facts(path, family, names, here=files is None)
    index = config_of(path / "model_index.json")
    pipeline = str(index.get("_class_name", ""))
    found = next((name for name, kind in KINDS.items() if pipeline in kind.pipelines), "")
    if not found:
        return None
    kind = KINDS[found]
    if family not in ("", found):
        is_not = FAMILIES[family].label if family in FAMILIES else family
        raise BadInput(str(path), f"is {kind.label}, not {is_not}", "leave the family out")
    refuse_code(path, names)
    for component, (library, name) in _components(path, index).items():
        _check_component(path, kind, component, library, name, names, here=files is None)
    return BaseFacts(found, "", "folder", f"its pipeline is {pipeline}", (), kind.medium)


def what_is_it(part: str, family: str) -> str:
    """How people call what is in the catalog as `part`; "" = nothing of this module."""
    if part == MOTION:
        return "motion adapter"
    return f"{KINDS[family].medium} base" if family in KINDS else ""


def _motion_facts(path: Path, family: str, names: Sequence[str], *, here: bool) -> BaseFacts | None:
    if not (path / "config.json").is_file():
        return None
    config = config_of(path / "config.json")
    if config.get("_class_name") != "MotionAdapter":
        return None
    refuse_code(path, names)
    _check_weights(path, "", names, here=here)
    label = FAMILIES[ANIMATES].label
    levels: Any = config.get("block_out_channels", ())
    if len(levels) == _LEVELS - 1:  # a toy has fewer still
        raise BadInput(str(path), "is a motion adapter for SDXL", f"give one for {label}")
    if family not in ("", ANIMATES):
        raise BadInput(str(path), f"is a motion adapter for {label}, not {family}", "leave the family out")
    return BaseFacts(ANIMATES, "", "folder", "its class is MotionAdapter", (), MOTION)


def _components(folder: Path, index: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Component -> (library, class), those that are there.

    Raises:
        BadInput: an entry is no pair of names.
    """
    found: dict[str, tuple[str, str]] = {}
    for component, said in index.items():
        if component.startswith("_") or not isinstance(said, list):
            continue
        pair = cast("list[Any]", said)
        if len(pair) != 2:
            raise BadInput(
                str(folder / "model_index.json"), f"is damaged at {component}", "download it again"
            )
        if pair[0] is not None and pair[1] is not None:
            found[component] = (str(pair[0]), str(pair[1]))
    return found


def _check_component(
    folder: Path, kind: Kind, component: str, library: str, name: str, names: Sequence[str], *, here: bool
) -> None:
    """Refuse what could run code, or would be missed when it is loaded.

    Raises:
        BadInput: in one line.
    """
    if library not in (*_LIBRARIES, *kind.modules):  # a library is imported by this name
        wrong = f"wants {library}.{name} as its {component}, which no {kind.label} has"
        raise BadInput(str(folder), wrong, "get the model from where it was published")
    if not component.isidentifier():  # it is a folder's name
        raise BadInput(
            str(folder / "model_index.json"), f"is damaged at {component[:40]!r}", "download it again"
        )
    if not any(name.endswith(end) for end in _NO_WEIGHTS) and "ImageProcessor" not in name:
        _check_weights(folder, component, names, here=here)
    elif "Tokenizer" in name and not any(f"{component}/{file}" in names for file in _WORDS):
        wrong = f"has none of {', '.join(_WORDS)}"
        raise BadInput(str(folder / component), wrong, f"copy the folder {component}/ of the original there")


def _check_weights(folder: Path, component: str, names: Sequence[str], *, here: bool) -> None:
    """Of a component; "" = the folder itself."""
    own = [name for name in names if PurePosixPath(name).parent.as_posix() == (component or ".")]
    sound = [name for name in own if name.endswith(".safetensors")]
    if not sound:
        pickle = next((name for name in own if PurePosixPath(name).suffix in PICKLES), "")
        what = f"its {component}" if component else "its motion"
        wrong = f"has the weights of {what} as a pickle only ({pickle}), which can run code; not loaded"
        if not pickle:
            wrong = f"has no weights of {what} (*.safetensors)"
        do = "convert it to safetensors" if pickle else "get the complete folder"
        raise BadInput(str(folder), wrong, do)
    for name in sound if here else ():
        read_header(folder / name)  # cut off or empty: known now, not when a sound is wanted
