"""The layout of PEFT: a folder with `adapter_model.safetensors` and `adapter_config.json`.

`PeftModel.from_pretrained(unet, FOLDER)` reads the UNet's part from the folder itself, and
`PeftModel.from_pretrained(text_encoder, FOLDER, subfolder="text_encoder")` the text encoder's. PEFT matches
the names of modules in memory, where transformers >= 5 has no `text_model.` in CLIPTextModel (it has in
CLIPTextModelWithProjection): these names are written.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from registry.errors import BadInput, Damaged
from registry.files import read_json
from registry.formats import diffusers
from registry.formats.factors import Factors
from registry.formats.families import PEFT_ROOT, TEXT_ROOT, family_format
from registry.formats.internal import AdapterForm, LoraFactors
from registry.formats.reading import PEFT_METADATA, read
from registry.formats.tensors import Array, read_tensors

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def write(form: AdapterForm, base_name: str = "") -> dict[str, tuple[dict[str, Array], dict[str, Any]]]:
    """Subfolder ("" for the denoiser) -> tensors and LoraConfig; alpha / r is folded into `lora_B`."""
    parts: dict[str, tuple[dict[str, Array], dict[str, Any]]] = {}
    names = family_format(form.family)
    for component in form.components:
        tensors: dict[str, Array] = {}
        ranks: dict[str, int] = {}
        for module, factors in form.of(component).items():
            path = module.partition(".")[2]
            if component not in names.projected:
                path = path.removeprefix(TEXT_ROOT)
            folded: LoraFactors = factors.with_alpha(float(factors.rank))
            tensors[f"{PEFT_ROOT}{path}.lora_A.weight"] = folded.down
            tensors[f"{PEFT_ROOT}{path}.lora_B.weight"] = folded.up
            ranks[path] = factors.rank
        parts["" if component == names.denoiser else component] = (tensors, _config(ranks, base_name))
    return parts


def read_folder(folder: Path, family: str = "") -> AdapterForm:
    """The adapter in a folder written by PEFT or by `write`.

    Raises:
        BadInput: a file is missing or unsound, or the method is none that we read.
    """
    modules: dict[str, LoraFactors] = {}
    others: dict[str, Factors] = {}
    found = [file for file in (folder / WEIGHTS, *sorted(folder.glob(f"*/{WEIGHTS}"))) if file.is_file()]
    if not found:
        raise BadInput(str(folder), f"holds no {WEIGHTS}", "name the folder that PEFT saved")
    for file in found:
        metadata = _strengths(file.with_name(CONFIG), family)
        # Two text encoders have the same names inside; the subfolder tells them apart.
        component = file.parent.name if file.parent != folder else ""
        known = component in family_format(family).grammars
        tensors = {
            f"{component}.{key.removeprefix(PEFT_ROOT)}" if known else key: value
            for key, value in read_tensors(file).items()
        }
        form = read(tensors, metadata, family)
        modules |= form.modules
        others |= form.others
    return AdapterForm(family, modules, others)


def _config(ranks: Mapping[str, int], base_name: str) -> dict[str, Any]:
    """What `peft.LoraConfig` reads; alpha = rank for every module, whatever its rank."""
    common = max(set(ranks.values()), key=list(ranks.values()).count)
    # Without "^" a pattern counts for longer paths too: FLUX has a proj_out in its blocks and one at the end.
    others = {f"^{path}": rank for path, rank in ranks.items() if rank != common}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base_name or None,
        "inference_mode": True,
        "r": common,
        "lora_alpha": common,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": list(ranks),
        "bias": "none",
        "lora_dropout": 0.0,
    }


def _strengths(config_file: Path, family: str) -> dict[str, str]:
    """adapter_config.json in the form of diffusers' metadata, for every component: names tell them apart."""
    if not config_file.is_file():
        raise BadInput(str(config_file), "is missing, so the strength is unknown", "copy the whole folder")
    try:
        values: Any = read_json(config_file)
    except Damaged as error:
        raise BadInput(error.thing, error.wrong, "copy the folder again") from error
    config = cast(dict[str, Any], values) if isinstance(values, dict) else {}
    method = config.get("peft_type")
    parts = family_format(family).grammars
    if method == "LORA":
        flat = {f"{part}.{key}": value for part in parts for key, value in config.items()}
        return {diffusers.ADAPTER_METADATA: json.dumps(flat)}
    if method in ("LOHA", "LOKR", "OFT"):
        return {PEFT_METADATA: json.dumps(dict.fromkeys(parts, config))}
    raise BadInput(
        str(config_file), "describes no adapter that we read", "see docs/formats.md for what can be read"
    )
