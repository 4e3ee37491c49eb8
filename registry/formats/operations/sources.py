"""The weights of a base or a fine-tuned model by module, read one at a time from its files."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from registry.errors import BadInput, NotFound
from registry.formats.checkpoints import Layer, layers_of, weight_files
from registry.formats.families import TEXT_ROOT, FamilyFormat, family_format
from registry.formats.header import TensorInfo, read_header, shown
from registry.formats.original import SGM_LAYERS
from registry.formats.single_file import PREFIXES, open_clip_name, unet_name
from registry.formats.tensors import Array, read_tensor

_DOWN = re.compile(r"\.input_blocks\.(\d{1,3})\.0\.op\.weight$")


@dataclass(frozen=True)
class Place:
    """Where the weight of a module lies."""

    file: Path
    info: TensorInfo
    layer: Layer

    @property
    def rows(self) -> slice:
        """Rows of the tensor that are this weight."""
        return slice(self.layer.first, self.layer.first + self.layer.shape[0])


@dataclass(frozen=True)
class VectorPlace:
    """Where a norm's weight or a bias lies: rows of a tensor of one side."""

    file: Path
    tensor: str
    info: TensorInfo
    rows: slice
    halves: bool = False  # see `Layer.halves`


class BaseWeights:
    """Weights of a model in diffusers' folder layout or in one published file.

    Args:
        path: The folder or the file.
        family: Its family.
        extra: For a file: the folder that brings the components it lacks.

    Raises:
        NotFound: nothing is there.
        BadInput: a file is unsound, or holds no weights of the family.
    """

    def __init__(self, path: Path, family: str, extra: Path | None = None) -> None:
        if not path.exists():
            raise NotFound(str(path), "is not there", "check the path")
        self.path, self.family, self.is_file = path, family, path.is_file()
        self.places: dict[str, Place] = {}
        self.rest: dict[str, tuple[Path, TensorInfo]] = {}  # norms, biases, ... by component and name
        names = family_format(family)
        if self.is_file:
            self._add_file(path)
        for component in names.grammars:
            folder = (extra or path) / component
            if (extra or not self.is_file) and not any(m.startswith(f"{component}.") for m in self.places):
                self._add_folder(names, component, folder)
        if not self.places:
            raise BadInput(
                str(path), f"has no weights of {family}", "give a diffusers folder or a checkpoint"
            )

    def __contains__(self, module: str) -> bool:
        return module in self.places

    def shape(self, module: str) -> tuple[int, ...]:
        """Shape of the weight of a module."""
        return self.places[module].layer.shape

    def read(self, module: str) -> Array:
        """Weight of a module, (out, in) or (out, in, kh, kw), float32.

        Raises:
            BadInput: the model has no such module, or a value is not finite.
        """
        if module not in self.places:
            wrong = f"has no module {shown(module)}"
            raise BadInput(str(self.path), wrong, "use the base that the adapter was trained on")
        place = self.places[module]
        weight = read_tensor(place.file, place.layer.tensor, place.info)[place.rows]
        return swapped(weight) if place.layer.halves else weight

    def vector(self, module: str, leaf: str) -> VectorPlace | None:
        """Where the bias of a layer or a norm lies, or a norm's weight; None when this model has none.

        Args:
            module: Full name.
            leaf: "bias" or "weight".
        """
        place = self.places.get(module)
        if place is not None:
            tensor = place.layer.tensor.removesuffix("weight") + leaf
            return self._vector(module, tensor, place.rows, halves=place.layer.halves)
        component, _, path = module.partition(".")
        names = [path, path.removeprefix(TEXT_ROOT)]
        if self.is_file and (published := _published_norm(self.family, component, path)):
            names = [published]
        return next(
            (at for name in names if (at := self._vector(module, f"{name}.{leaf}", slice(None)))), None
        )

    def knows_norms(self, module: str) -> bool:
        """Whether a norm of that name would be found if this model had it."""
        return not self.is_file or module.partition(".")[0] in PREFIXES.get(self.family, {})

    def _vector(self, module: str, tensor: str, rows: slice, *, halves: bool = False) -> VectorPlace | None:
        component = module.partition(".")[0]
        found = self.rest.get(f"{component}.{tensor}") or (self.rest.get(tensor) if self.is_file else None)
        if found is None or len(found[1].shape) != 1:
            return None
        return VectorPlace(found[0], tensor, found[1], rows, halves)

    def _add_file(self, path: Path) -> None:
        tensors = read_header(path).tensors
        if any((m := _DOWN.search(name)) and int(m[1]) % (SGM_LAYERS + 1) for name in tensors):
            wrong = f"has another number of residual blocks a level than the published models ({SGM_LAYERS})"
            raise BadInput(str(path), wrong, "give it as a diffusers folder")
        used: set[str] = set()
        for layer in layers_of(self.family, tensors):
            names = family_format(self.family)
            if names.grammars[layer.component].knows(layer.path):
                used.add(layer.tensor)
                self.places[f"{layer.component}.{layer.path}"] = Place(path, tensors[layer.tensor], layer)
        self.rest |= {name: (path, info) for name, info in tensors.items() if name not in used}

    def _add_folder(self, names: FamilyFormat, component: str, folder: Path) -> None:
        grammar = names.grammars[component]
        for file in weight_files(folder):
            for name, info in read_header(file).tensors.items():
                path = name.removesuffix(".weight")
                path = path if grammar.knows(path) else TEXT_ROOT + path
                if name.endswith(".weight") and len(info.shape) > 1 and grammar.knows(path):  # no norms
                    layer = Layer(component, path, name, tuple(info.shape))
                    self.places[f"{component}.{path}"] = Place(file, info, layer)
                else:
                    self.rest[f"{component}.{name}"] = file, info


def _published_norm(family: str, component: str, path: str) -> str:
    """Name of a norm in a published Stable Diffusion checkpoint; "" where we do not know them."""
    prefix = PREFIXES.get(family, {}).get(component)
    if prefix is None:
        return ""
    if component == "unet":
        return prefix + unet_name(f"{path}.", SGM_LAYERS, set()).removesuffix(".")
    inside = f"{path.removeprefix(TEXT_ROOT)}."
    return prefix + (open_clip_name(inside) if prefix.endswith(".model.") else inside).removesuffix(".")


def swapped(weight: Array) -> Array:
    """(shift, scale) <-> (scale, shift)."""
    first, second = np.split(weight, 2)
    return np.concatenate([second, first])


def differing(base: BaseWeights, tuned: BaseWeights) -> Iterator[str]:
    """Names of tensors other than layers' weights (norms, biases, embeddings) that are not the same."""
    for name, (file, info) in base.rest.items():
        other = tuned.rest.get(name)
        if (
            other is None
            or info.dtype not in {"F16", "BF16", "F32"}
            or other[1].dtype not in {"F16", "BF16", "F32"}
        ):
            continue
        mine, theirs = read_tensor(file, name, info), read_tensor(other[0], name, other[1])
        if mine.shape != theirs.shape or not np.allclose(mine, theirs, rtol=1e-3, atol=1e-6):
            yield name
