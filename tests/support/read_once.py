"""Models of a folder are read from disk once a process: most tests load a toy base, at 0.2 s of CPU time."""

import io
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainers.families.base import Family

READERS = {"diffusers.models.modeling_utils": "ModelMixin", "transformers.modeling_utils": "PreTrainedModel"}
LARGEST = 2**26  # bytes of a folder that is kept in memory
PLAIN = (str, int, float, bool, type(None), torch.dtype, Path)


class Mould:
    """A module to be cast again and again, at a tenth of the time of reading it and a third of a deep copy.

    Args:
        module: It is pickled, but for its tensors, which are cloned.
    """

    def __init__(self, module: nn.Module) -> None:
        file = io.BytesIO()
        pickler = _Pickler(file, pickle.HIGHEST_PROTOCOL)
        pickler.dump(module)
        self._bytes, self._tensors = file.getvalue(), [tensor.detach().clone() for tensor in pickler.tensors]
        self._learning = [t.requires_grad if isinstance(t, nn.Parameter) else None for t in pickler.tensors]

    def cast(self) -> Any:
        """A module that shares nothing with others."""
        return _Unpickler(io.BytesIO(self._bytes), self._tensors, self._learning).load()


class _Pickler(pickle.Pickler):
    """Leaves tensors out and notes them, each once."""

    def __init__(self, *options: Any) -> None:
        super().__init__(*options)
        self.tensors, self._known = list[Tensor](), dict[int, int]()

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, Tensor):
            return None
        if id(obj) not in self._known:
            self._known[id(obj)] = len(self.tensors)
            self.tensors.append(obj)
        return self._known[id(obj)]


class _Unpickler(pickle.Unpickler):
    """Puts clones in their place; what is tied stays tied."""

    def __init__(self, file: io.BytesIO, tensors: list[Tensor], learning: list[bool | None]) -> None:
        super().__init__(file)
        self._tensors, self._learning, self._made = tensors, learning, dict[int, Tensor]()

    def persistent_load(self, pid: int) -> Tensor:
        if pid not in self._made:
            copy, learns = self._tensors[pid].clone(), self._learning[pid]
            self._made[pid] = copy if learns is None else nn.Parameter(copy, learns)
        return self._made[pid]


def read_models_once(patch: pytest.MonkeyPatch) -> None:
    """The second time a folder is read whose files are the same, and from then on, the model is cast.

    Only of libraries that are loaded: what needs none shall not wait for them. A family loads them late.
    """
    waiting, load = dict(READERS), Family._load_folder  # pyright: ignore[reportPrivateUsage]

    def look() -> None:
        for module in waiting.keys() & sys.modules.keys():
            _read_once(getattr(sys.modules[module], waiting.pop(module)), patch)

    def load_folder(family: Family, name: str, cls: Any) -> Any:
        look()
        return load(family, name, cls)

    look()
    patch.setattr(Family, "_load_folder", load_folder)


def _read_once(reader: Any, patch: pytest.MonkeyPatch) -> None:
    read = reader.__dict__["from_pretrained"].__func__
    moulds: dict[Any, Mould | None] = {}

    def from_pretrained(cls: Any, folder: Any = None, *rest: Any, **options: Any) -> Any:
        key = None if rest else _key(cls, folder, options)
        if key is None:
            return read(cls, folder, *rest, **options)
        if mould := moulds.get(key):
            return mould.cast()
        model = read(cls, folder, **options)
        moulds[key] = _mould(model) if key in moulds else None
        return model

    patch.setattr(reader, "from_pretrained", classmethod(from_pretrained))


def _key(cls: Any, folder: Any, options: dict[str, Any]) -> Any:
    """What says that the same comes of it; None: too large, or of no folder."""
    if not isinstance(folder, str | Path) or not all(isinstance(value, PLAIN) for value in options.values()):
        return None
    place = Path(folder) / (options.get("subfolder") or "")
    if not place.is_dir():
        return None
    files = {file.name: file.stat() for file in place.iterdir()}
    if sum(facts.st_size for facts in files.values()) > LARGEST:
        return None
    known = sorted((name, facts.st_ino, facts.st_size, facts.st_mtime_ns) for name, facts in files.items())
    return cls, str(folder), repr(sorted(options.items())), repr(known)


def _mould(model: Any) -> Mould | None:
    """None: it cannot be pickled, or it is something else."""
    if not isinstance(model, nn.Module):
        return None
    try:
        return Mould(model)
    except (pickle.PicklingError, AttributeError, TypeError):
        return None
