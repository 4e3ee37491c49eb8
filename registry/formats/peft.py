"""The layout of PEFT: a folder with `adapter_model.safetensors` and `adapter_config.json`.

`PeftModel.from_pretrained(unet, FOLDER)` reads the UNet's part from the folder itself, and
`PeftModel.from_pretrained(text_encoder, FOLDER, subfolder="text_encoder")` the text encoder's. PEFT matches
the names of modules in memory, where transformers >= 5 has no `text_model.` in CLIPTextModel (it has in
CLIPTextModelWithProjection): these names are written.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from registry.errors import BadInput
from registry.formats.factors import Factors
from registry.formats.families import PEFT_ROOT, TEXT_ROOT, family_format
from registry.formats.internal import AdapterForm, LoraFactors
from registry.formats.peft_config import CONFIG, WEIGHTS, PeftConfig, read_config
from registry.formats.reading import read
from registry.formats.tensors import Array, read_tensors

__all__ = ["CONFIG", "WEIGHTS", "read_folder", "write"]


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
    biases: dict[str, Array] = {}
    found = [file for file in (folder / WEIGHTS, *sorted(folder.glob(f"*/{WEIGHTS}"))) if file.is_file()]
    if not found:
        raise BadInput(str(folder), f"holds no {WEIGHTS}", "name the folder that PEFT saved")
    for file in found:
        component = file.parent.name if file.parent != folder else ""
        known = component in family_format(family).grammars
        config = PeftConfig(read_config(file.with_name(CONFIG)), component if known else "")
        tensors = {config.name(key): value for key, value in read_tensors(file).items()}
        form = read(tensors, config.metadata(family), family)
        modules |= form.modules
        others |= form.others
        biases |= form.biases
    return AdapterForm(family, modules, others, biases=biases)


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
