"""`adapter_config.json`, in which PEFT keeps how strong the weights beside it are.

A file of PEFT's says nothing of its strength itself. So the configuration is read together with it, once:
what is kept of it (`PeftConfig.to_json`) goes into the catalog and counts from then on, wherever the file is.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, cast

from registry.errors import BadInput
from registry.formats.diffusers import ADAPTER_METADATA
from registry.formats.families import PEFT_ROOT, family_format
from registry.formats.header import shown
from registry.formats.reading import PEFT_METADATA

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
MAX_BYTES = 1 << 20  # with a pattern for each of FLUX.1's modules it has a tenth of that
LORA, OTHERS = "LORA", ("LOHA", "LOKR", "OFT")
# What of a LoRA's configuration changes what its weights mean; ranks are in the weights.
_OF_LORA = ("r", "lora_alpha", "alpha_pattern", "use_rslora", "use_dora", "init_lora_weights")
# Of other methods PEFT needs the rest too, to build the layers of an exported folder.
_NOT_KEPT = (
    "base_model_name_or_path",
    "auto_mapping",
    "revision",
    "peft_version",
    "task_type",
    "inference_mode",
)
# Names of folders that say which part of a pipeline is in them.
_COMPONENTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
ASSUMED = (
    f"its strength is not known, because {CONFIG} is not beside it: taken as alpha = rank (scale 1); "
    "put it there and import again"
)


@dataclass(frozen=True)
class PeftConfig:
    """What is known of the strength of a file of PEFT's.

    Args:
        values: Of `adapter_config.json`; {} = there was none, and the strength is an assumption.
        component: Of the pipeline, where the folder's name says it; "" = by the names inside.
    """

    values: Mapping[str, Any] = field(default_factory=dict[str, Any])
    component: str = ""

    def metadata(self, family: str) -> dict[str, str]:
        """The configuration as files carry it, for every component: names tell them apart."""
        if not self.values:
            return {}
        parts = family_format(family).grammars
        if self.values["peft_type"] == LORA:
            flat = {f"{part}.{key}": value for part in parts for key, value in self.values.items()}
            return {ADAPTER_METADATA: json.dumps(flat)}
        return {PEFT_METADATA: json.dumps({part: dict(self.values) for part in parts})}

    def name(self, key: str) -> str:
        """A key of the file, with its component where that is known: text encoders have the same names."""
        if not self.component or not key.startswith(PEFT_ROOT):
            return key
        return f"{self.component}.{key.removeprefix(PEFT_ROOT)}"

    def to_json(self) -> dict[str, Any]:
        """As the catalog keeps it."""
        return {"config": dict(self.values), "component": self.component}

    @classmethod
    def from_json(cls, value: Any) -> Self | None:
        """Inverse of `to_json`; None when nothing was kept."""
        if not isinstance(value, dict) or not isinstance(value.get("config"), dict):  # pyright: ignore[reportUnknownMemberType]
            return None
        kept = cast("dict[str, Any]", value)
        return cls(kept["config"], str(kept.get("component", "")))


def peft_config(path: Path, keys: Collection[str], metadata: Mapping[str, str]) -> PeftConfig | None:
    """The configuration that belongs to the adapter file at `path`; None when its strength is elsewhere.

    It is read beside a file of PEFT's own name, and beside one with PEFT's keys that is alone in its folder.

    Args:
        path: The file.
        keys: Its tensors.
        metadata: Its header's; a file that says its strengths there or by `.alpha` needs no configuration.

    Raises:
        BadInput: the configuration is unsound, of a method that we do not read, or not that of these weights.
    """
    if {ADAPTER_METADATA, PEFT_METADATA} & metadata.keys() or any(key.endswith(".alpha") for key in keys):
        return None
    is_peft = any(key.startswith(PEFT_ROOT) for key in keys)
    if not is_peft and path.name != WEIGHTS:
        return None
    file = path.with_name(CONFIG)
    component = path.parent.name if path.parent.name in _COMPONENTS else ""
    if not file.is_file() or (path.name != WEIGHTS and _others_beside(path)):
        return PeftConfig(component=component) if is_peft else None
    values = read_config(file)
    _require_magnitudes(file, values, keys)
    return PeftConfig(values, component)


def read_config(file: Path) -> dict[str, Any]:
    """What is kept of an `adapter_config.json`.

    Raises:
        BadInput: it is missing, too large, no JSON, or of a method that we do not read; patterns of it are
            regular expressions, which are never run.
    """
    if not file.is_file():
        raise BadInput(str(file), "is missing, so the strength is unknown", "copy the whole folder")
    try:
        with file.open("rb") as stream:
            text = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise BadInput(str(file), f"cannot be read ({error.strerror})", "check its permissions") from error
    if len(text) > MAX_BYTES:
        raise BadInput(str(file), f"is too large, the limit is {MAX_BYTES} bytes", "copy the folder again")
    try:
        values: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(str(file), "is not JSON", "copy the folder again") from error
    config = cast("dict[str, Any]", values) if isinstance(values, dict) else {}
    method = config.get("peft_type")
    if method == LORA:
        kept = {key: config[key] for key in _OF_LORA if config.get(key) is not None}
    elif method in OTHERS:
        kept = {key: value for key, value in config.items() if key not in _NOT_KEPT}
    else:
        wrong = "describes no adapter that we read"
        raise BadInput(str(file), wrong, "see docs/formats.md for what can be read")
    for table in ("alpha_pattern", "rank_pattern"):
        _require_plain(file, table, kept.get(table))
    return {"peft_type": method, **kept}


def _require_plain(file: Path, table: str, patterns: Any) -> None:
    """PEFT's patterns are regular expressions; one that is more than a path would give other strengths."""
    if patterns is None:
        return
    if not isinstance(patterns, dict):
        raise BadInput(f"{file}: {table}", "is not an object", "copy the folder again")
    for pattern in cast("dict[str, Any]", patterns):
        if not re.fullmatch(r"\^?(\w|-|\\?\.)*\$?", pattern):
            wrong = f"is a regular expression ({shown(pattern)}), which is not run when it comes from a file"
            raise BadInput(f"{file}: {table}", wrong, "write the modules' own names there")


def _require_magnitudes(file: Path, values: Mapping[str, Any], keys: Collection[str]) -> None:
    if values.get("use_dora") is True and not any("lora_magnitude_vector" in key for key in keys):
        wrong = "says DoRA, and the weights beside it have no lora_magnitude_vector"
        raise BadInput(str(file), wrong, "ask its author for the whole adapter")


def _others_beside(path: Path) -> bool:
    return any(file != path and file.suffix == ".safetensors" for file in path.parent.iterdir())
