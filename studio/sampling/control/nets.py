"""Networks that read maps, loaded and kept; only the sampler process imports this."""

import gc
import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from registry.errors import BadInput
from registry.files import read_json
from studio.sampling.task import TaskControl
from trainers.families.base import Family

KEPT = 2  # networks that stay loaded beside those in use
_MODULES = {
    "ControlNetModel": "diffusers.models.controlnets.controlnet",
    "ControlNetUnionModel": "diffusers.models.controlnets.controlnet_union",
    "SD3ControlNetModel": "diffusers.models.controlnets.controlnet_sd3",
    "FluxControlNetModel": "diffusers.models.controlnets.controlnet_flux",
    "T2IAdapter": "diffusers.models.adapter",
}
_FILES = ("config.json", "*.safetensors")  # of a hub id


@dataclass(frozen=True)
class Net:
    """A loaded network."""

    model: Any
    mode: int | None  # of a union network: the kind's number
    kind: str

    @property
    def bytes(self) -> int:
        """Of its weights."""
        return sum(p.numel() * p.element_size() for p in self.model.parameters())


class Nets:
    """Networks by content, the last used kept."""

    def __init__(self) -> None:
        self._loaded: OrderedDict[str, Any] = OrderedDict()

    def take(self, control: TaskControl, family: Family) -> Net:
        """A network, loaded for a base's device and precision.

        Raises:
            BadInput: its files are not there, or do not fit together.
        """
        key = f"{control.weight_hash or control.location}@{family.dtype}@{family.device}"
        if key not in self._loaded:
            model = load_net(control, family).to(family.device, family.dtype).eval()
            self._loaded[key] = _completed(model, family)
        self._loaded.move_to_end(key)
        return Net(self._loaded[key], control.mode, control.map_kind)

    def trim(self, in_use: int = 0) -> None:
        """Forget all but the last `KEPT` beyond those in use."""
        if len(self._loaded) <= in_use + KEPT:  # as of every request without controls: `collect` is slow
            return
        while len(self._loaded) > in_use + KEPT:
            self._loaded.popitem(last=False)
        gc.collect()

    def clear(self) -> None:
        """Give all memory back."""
        self._loaded.clear()


def load_net(control: TaskControl, family: Family) -> Any:
    """The network from its folder, single file or the hub.

    Raises:
        BadInput: see `Nets.take`.
    """
    if control.kind == "file":
        return _from_file(Path(control.location), family)
    folder = Path(control.location)
    if control.kind == "hub":
        from huggingface_hub import snapshot_download

        revision = control.revision or None
        folder = Path(snapshot_download(control.location, revision=revision, allow_patterns=list(_FILES)))
    if not (folder / "config.json").is_file():
        raise BadInput(control.name, f"is no longer at {folder}", "put it back, or add it again")
    cls = _class_of(str(read_json(folder / "config.json").get("_class_name", "")))
    return _guarded(
        control.name,
        lambda: cls.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=family.dtype),
    )


def _from_file(file: Path, family: Family) -> Any:
    """A ControlNet whose structure is that of the base's UNet, which is how they are made.

    Files in the original names and in diffusers' are read; a union network is told by its task embedding.
    """
    from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
    from safetensors.torch import load_file

    if not file.is_file():
        raise BadInput(str(file), "is not there", "put it back, or add it again")
    weights = load_file(file)
    union = weights.get("task_embedding")
    cls = _class_of("ControlNetModel" if union is None else "ControlNetUnionModel")
    taken = inspect.signature(cls.__init__).parameters
    config = {key: value for key, value in family.config("unet").items() if key in taken} | {"in_channels": 4}
    if union is not None:
        config |= {"num_control_type": len(union), "num_trans_channel": union.shape[1]}
    config |= _hint_channels(weights)

    def load() -> Any:
        model = cls.from_config(config)
        model.load_state_dict(convert_controlnet_checkpoint(weights, model.config))
        return model

    return _guarded(file.name, load)


def _hint_channels(weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Widths of the layers that read the map, where diffusers' names tell them."""
    first, last = "controlnet_cond_embedding.conv_in.weight", "controlnet_cond_embedding.conv_out.weight"
    if first not in weights:
        return {}
    blocks = [
        weights[name].shape[0]
        for name in sorted(weights, key=lambda name: [int(p) for p in name.split(".") if p.isdigit()])
        if name.startswith("controlnet_cond_embedding.blocks.") and name.endswith(".weight")
    ]
    widths = [weights[first].shape[0], *blocks[1::2]]
    assert weights[last].shape[1] == widths[-1], "blocks come in pairs, the second one widens"
    return {"conditioning_embedding_out_channels": tuple(widths)}


def _completed(model: Any, family: Family) -> Any:
    """SD3.5's own ControlNets bring no embedding of positions: they use the transformer's."""
    if getattr(model.config, "use_pos_embed", True) is False and model.pos_embed is None:
        positions = model._get_pos_embed_from_transformer(family.denoiser)  # the only way diffusers offers
        model.pos_embed = positions.to(family.device, family.dtype)
    return model


def _class_of(name: str) -> Any:
    from importlib import import_module

    if name not in _MODULES:
        raise BadInput(name or "the network", "is no ControlNet that can be read", "add it again")
    return getattr(import_module(_MODULES[name]), name)


def _guarded(name: str, load: Callable[[], Any]) -> Any:
    """What `load` gives; what goes wrong in one line."""
    try:
        return load()
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200].rstrip(". ")
        raise BadInput(
            name, f"cannot be loaded ({reason})", "check that it is complete, and its base"
        ) from error
