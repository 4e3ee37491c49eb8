"""Full fine-tune: the base's own weights learn; the result is a base, not an adapter.

DreamBooth as it was published (Ruiz et al. 2022). Weights are trained in the precision of the run: fp32, or
bf16 with stochastic rounding (`trainers.rounding`). The result is a diffusers folder, and where the family
has an original layout, one file as well:

    runs/<id>/model/              everything, the parts that did not learn included
    runs/<id>/model.safetensors   the same as one file
"""

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from registry.errors import BadInput
from registry.files import atomic_folder, atomic_path, require_space
from registry.formats.checkpoints import weight_files
from trainers.families.base import Family
from trainers.methods import Trainables, file_key
from trainers.recipe_fields import AdapterSection
from trainers.rundir import MODEL, MODEL_FILE
from trainers.single_file import original_tensors

if TYPE_CHECKING:
    from trainers.checkpoints import Learning
    from trainers.recipe import Recipe
    from trainers.setup import Setting

USUAL_RATE = 1e-5  # of diffusers' and kohya's DreamBooth recipes 1e-6 to 5e-6

log = logging.getLogger(__name__)


def attach_full(family: Family, section: AdapterSection) -> Trainables:
    """Let the denoiser learn and, if the recipe says so, the text encoders; nothing is added to them.

    Raises:
        BadInput: the run computes in fp16, whose updates underflow.
    """
    if family.dtype == torch.float16:
        raise BadInput("train.precision", "is fp16, in which weights cannot learn", "set it to bf16 or fp32")
    names = (family.denoiser_name, *family.trained_encoders(section))
    parts: dict[str, dict[str, nn.Parameter]] = {}
    components: dict[str, nn.Module] = {}
    for name in names:
        module = components[name] = family.part(name)
        parts[name] = {file_key(name, module, key): value for key, value in module.named_parameters()}
        for parameter in parts[name].values():
            parameter.requires_grad_(True)
    denoiser = parts.pop(family.denoiser_name)
    text = {key: value for part in parts.values() for key, value in part.items()}
    return Trainables(denoiser, text, {}, components, separable=False)


def full_warnings(recipe: "Recipe") -> list[str]:
    """A rate that suits an adapter forgets the base within a few hundred steps."""
    rate = recipe.optimizer.lr
    if recipe.adapter.method != "full" or rate <= USUAL_RATE or recipe.optimizer.name == "prodigy":
        return []
    return [f"optimizer.lr is {rate:g}: whole models usually learn at 1e-6 to {USUAL_RATE:g}"]


def publish_model(setting: "Setting", learning: "Learning") -> None:
    """Write the result of a finished run: the folder, then the single file. Each appears whole or not at all.

    Raises:
        StudioError: the disk is full.
    """
    family, rundir = setting.family, setting.rundir
    size = sum(p.numel() * p.element_size() for p in learning.trainables.parameters)
    require_space(rundir.path, 3 * size, "the model")
    setting.reporter.phase("saving")
    with learning.ema.applied():
        trained = {name: _weights(name, part) for name, part in learning.trainables.components.items()}
        with atomic_folder(rundir.file(MODEL)) as folder:
            write_folder(folder, family, trained)
    if not family.single_file:
        log.info("%s has no layout for a single file; the result is the folder", family.name)
        return
    with atomic_path(rundir.file(MODEL_FILE)) as temporary:
        save_file(original_tensors(rundir.file(MODEL), family.single_file), temporary, {"format": "pt"})


def write_folder(folder: Path, family: Family, trained: dict[str, dict[str, Tensor]]) -> None:
    """A diffusers folder of the base with some components' weights replaced.

    Args:
        folder: Exists.
        family: Its base gives all that did not learn.
        trained: Component -> its weights by their name in a file.
    """
    source = family.config_folder
    shutil.copyfile(source / "model_index.json", folder / "model_index.json")
    for name in dict.fromkeys((*family.parts, "scheduler")):
        place = folder / name
        place.mkdir()
        for file in (source / name).iterdir():
            if file.is_file() and file.suffix in (".json", ".txt") and ".index." not in file.name:
                shutil.copyfile(file, place / file.name)
        if name in trained:
            save_file(trained[name], place / _file_name(name, family), {"format": "pt"})
        elif name in family.parts and family.base.kind == "file":
            part: Any = family.part(name)
            if isinstance(part, nn.Module):
                save_file(_weights(name, part), place / _file_name(name, family), {"format": "pt"})
                if name != "vae":
                    family.free(name)
        else:
            _copy_weights(source / name, place)


def _copy_weights(source: Path, place: Path) -> None:
    """The component's files as they are, under names that every loader looks for."""
    files = weight_files(source)
    for file in files:
        shutil.copyfile(file, place / file.name.replace(".fp16.", "."))
    if len(files) > 1:
        for index in source.glob("*.safetensors.index*.json"):
            text = index.read_text(encoding="utf-8").replace(".fp16.", ".")
            (place / index.name.replace(".fp16.", ".").replace(".fp16", "")).write_text(
                text, encoding="utf-8"
            )


def _weights(name: str, module: nn.Module) -> dict[str, Tensor]:
    """A component's weights by the names that files have: text encoders with their `text_model.`.

    What a module has under two names, as T5 its embedding, is there under the first.
    """
    head = len(name) + 1
    twice = {key for key, _ in module.named_parameters(remove_duplicate=False)}
    twice -= {key for key, _ in module.named_parameters()}
    return {
        file_key(name, module, key)[head:]: value.detach().cpu().contiguous()
        for key, value in module.state_dict().items()
        if key not in twice
    }


def _file_name(name: str, family: Family) -> str:
    return "model.safetensors" if name in family.text_encoder_names else "diffusion_pytorch_model.safetensors"
