"""The contract that every model family fulfils, and how the parts of a base come into memory.

A family owns what differs between model families: how to load, encode and call the denoiser. It never sees
the optimizer, the accelerator or the step; the objective samples timesteps and noise, never the family.
"""

import gc
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from registry.errors import BadInput
from registry.files import read_json
from registry.formats.checkpoints import weight_files
from registry.hashing import FileHasher, hash_folder, sha256_file
from trainers.deferred import defer
from trainers.families.single_file import SingleFile
from trainers.objectives import Objective

if TYPE_CHECKING:
    from trainers.plan import Geometry
    from trainers.recipe import AdapterSection, ObjectiveSection

defer("scipy.stats")  # diffusers imports it with every UNet, for Beta noise levels: more CPU time than torch
defer("scipy.integrate")  # and this, for the coefficients of one scheduler, LMS: 1.6 s
defer("scipy.optimize", "linear_sum_assignment")  # transformers does, for losses of object detectors: 2 s

Conditioning = dict[str, Tensor]  # every value has batch as axis 0, so it can be cached and collated
NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class BaseFiles:
    """Where a base model lies.

    Args:
        location: A diffusers folder, a safetensors file, or a hub id.
        kind: Which of the three.
        config: Folder of configs and tokenizer that describes a single file.
        revision: Of a hub id.
    """

    location: str
    kind: Literal["folder", "file", "hub"] = "folder"
    config: str = ""
    revision: str = ""

    def check(self) -> None:
        """Refuse what cannot be loaded, or could run code.

        Raises:
            BadInput: missing, a folder with Python files, a file in another format or without configs.
        """
        if self.kind == "hub":
            return
        path = Path(self.location)
        if not path.exists():
            raise BadInput(self.location, "the base is not there", "put it back, or add the base again")
        if self.kind == "file":
            if path.suffix != ".safetensors":
                raise BadInput(path.name, "is no safetensors file", "convert it; other formats can run code")
            if not self.config:
                raise BadInput(
                    path.name, "has no configs beside its weights", "add the base with --config DIR"
                )
        folder = Path(self.config if self.kind == "file" else self.location)
        if code := next(folder.rglob("*.py"), None):
            raise BadInput(str(code), "a base may not bring code", "remove the file if you do not need it")


@dataclass(frozen=True)
class Use:
    """How a base is used: what a recipe may say that is decided before anything is loaded.

    Args:
        text_length: Tokens that T5 reads, at most 512; 0 = as many as the family's pipeline.
        guidance: Value of the guidance input where the base has one and the conditioning brings none.
    """

    text_length: int = 0
    guidance: float = 1.0


@dataclass(frozen=True)
class Part:
    """A component of a pipeline: the class is imported when the part is loaded, not before."""

    module: str
    class_name: str

    def load_class(self) -> Any:
        """Import the class, without the pipelines (a pipeline import costs more than all parts together)."""
        from importlib import import_module

        return getattr(import_module(self.module), self.class_name)


class Family(ABC):
    """A base model of one family, loaded part by part.

    Args:
        base: Where it lies.
        dtype: Compute dtype of denoiser and text encoders; the VAE always computes in fp32, because fp16
            overflows in it and it works only once per picture.
        device: Where parts are put.
        use: Choices of the recipe.
    """

    name: ClassVar[str]
    denoiser_name: ClassVar[str]  # "unet" or "transformer"
    text_encoder_names: tuple[str, ...]  # of this base: some may lack one
    clip_encoders: ClassVar[tuple[str, ...]]  # text encoders that adapter.train_text_encoder trains
    t5_encoder: ClassVar[str] = ""  # text encoder that adapter.train_t5 trains
    bucket_multiple: ClassVar[int]  # pixels
    patch: ClassVar[int] = 1  # latent cells per token along one side
    # Short names of linear layers (and 1x1 convolutions), or an expression that whole paths match
    lora_targets: ClassVar[tuple[str, ...] | str]
    conv_targets: ClassVar[tuple[str, ...]] = ()  # short names of 3x3 convolutions
    text_targets: ClassVar[tuple[str, ...]] = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
    t5_targets: ClassVar[tuple[str, ...]] = ("q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo")
    parts: ClassVar[Mapping[str, Part]]
    single_file: ClassVar[
        Mapping[str, str]
    ] = {}  # component -> its prefix in the original checkpoint; {} = none

    def __init__(
        self, base: BaseFiles, *, dtype: torch.dtype, device: torch.device, use: Use | None = None
    ) -> None:
        base.check()
        self.base, self.dtype, self.device, self.use = base, dtype, device, use or Use()
        self.home = device  # where parts lie when they are loaded; who offloads them, says another
        self._loaded: dict[str, Any] = {}

    @property
    def denoiser(self) -> nn.Module:
        """UNet or transformer."""
        return self.part(self.denoiser_name)

    @property
    def text_encoders(self) -> dict[str, nn.Module]:
        """Text encoders by their name in the pipeline."""
        return {name: self.part(name) for name in self.text_encoder_names}

    @property
    def guidance_input(self) -> bool:
        """Whether the guidance scale is an input of the denoiser, which then needs no second call."""
        return False

    @property
    def second_call(self) -> bool:
        """Whether guidance takes a second call with the negative prompt."""
        return not self.guidance_input

    @property
    def inpaints(self) -> bool:
        """Whether the denoiser reads a mask and the masked picture beside the latents."""
        return False

    def beside(self, mask: Tensor, masked: Tensor) -> Tensor:
        """What such a denoiser reads beside the latents, (B, C', h, w).

        Args:
            mask: (1, 1, H, W) in pixels, 1 = drawn anew.
            masked: (B, C, h, w), scaled latents of the picture without its masked part.
        """
        raise NotImplementedError

    def unguided(self, empty: Conditioning) -> Conditioning:
        """What guidance starts from without a negative prompt, given the empty caption's conditioning."""
        return empty

    @property
    def side_multiple(self) -> int:
        """Pixels that both sides of a picture are multiples of."""
        return self.latent_factor * self.patch

    def trained_encoders(self, section: "AdapterSection") -> tuple[str, ...]:
        """Text encoders that learn along.

        Raises:
            BadInput: this base has none of the wanted kind.
        """
        wanted = self.clip_encoders if section.train_text_encoder else ()
        if section.train_t5:
            if self.t5_encoder not in self.text_encoder_names:
                raise BadInput("adapter.train_t5", "is on, but this base has no T5", "set it to false")
            wanted = (*wanted, self.t5_encoder)
        return wanted

    def targets_of(self, text_encoder: str) -> tuple[str, ...]:
        """Short names of a text encoder's layers that can be adapted."""
        return self.t5_targets if text_encoder == self.t5_encoder else self.text_targets

    def cache_facts(self) -> list[Any]:
        """What a caption's conditioning depends on beside the weights."""
        return []

    def sampler_time(self, timestep: Tensor) -> Tensor:
        """A sampler's timestep (0 to 1000) as `predict` takes it."""
        return timestep

    def sampler_options(self, steps: int, shape: tuple[int, ...]) -> dict[str, Any]:
        """Arguments of the base's own sampler beside the steps, for latents of `shape` (B, C, h, w)."""
        del steps, shape
        return {}

    def part(self, name: str) -> Any:
        """A component, loaded at first use: frozen, in eval mode, on the device."""
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def holds(self, name: str) -> bool:
        """Whether a component is loaded."""
        return name in self._loaded

    def put(self, name: str, part: Any) -> None:
        """Use `part` as a component from now on."""
        self._loaded[name] = part

    def free(self, *names: str) -> None:
        """Give back the memory of components that are no longer needed."""
        for name in names:
            self._loaded.pop(name, None)
        if self.device.type == "cuda":
            gc.collect()  # streamed layers and their stream refer to each other
            torch.cuda.empty_cache()

    def scheduler_config(self) -> dict[str, Any]:
        """The base's scheduler_config.json; read without loading anything else."""
        return self._read_config("scheduler", "scheduler_config.json")

    def config(self, name: str) -> dict[str, Any]:
        """config.json of a component, without its weights."""
        return self._read_config(name, "config.json")

    def component_hash(self, name: str, memo: FileHasher | None = None) -> str:
        """Hex hash of a component's files: the part of a cache key that says which weights made the entry."""
        if self.in_single_file(name):
            path = Path(self.base.location)
            return memo.sha256(path) if memo else sha256_file(path)
        return hash_folder(self._folder() / name, memo)

    @abstractmethod
    def make_objective(self, section: "ObjectiveSection") -> Objective:
        """What the denoiser is trained on; may be decided by the base's scheduler config."""

    @property
    @abstractmethod
    def latent_factor(self) -> int:
        """Pixels per latent cell along one side."""

    @abstractmethod
    def encode_image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) in [-1, 1] -> mean and standard deviation of the latents, (B, C, h, w), scaled."""

    @abstractmethod
    def decode_image(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) scaled latents -> (B, 3, H, W) in [-1, 1], fp32."""

    @abstractmethod
    def tokenize(self, captions: list[str]) -> Conditioning:
        """Token ids for every text encoder, batch first; see `conditioning`."""

    @abstractmethod
    def tokens_cut(self, caption: str) -> int:
        """How many tokens of `caption` the text encoder will not see."""

    @abstractmethod
    def conditioning(self, cond: Conditioning) -> Conditioning:
        """Token ids or outputs of single encoders -> what the denoiser reads; that itself passes through."""

    @abstractmethod
    def predict(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Conditioning,
        geometry: "list[Geometry]",
        extra: Mapping[str, Any] = NOTHING,
    ) -> Tensor:
        """One call of the denoiser, with `extra` keyword arguments; returns a tensor shaped like `x_t`.

        `cond` may bring "beside" (B, C', h, w) and "guidance" (B,) for denoisers that read them.
        """

    @classmethod
    @abstractmethod
    def tiny(cls, seed: int = 0) -> dict[str, Any]:
        """All components, of the real classes at toy size with seeded random weights; for tests."""

    @abstractmethod
    def encode_text(self, captions: list[str], live: Collection[str] = ()) -> Conditioning:
        """Captions -> what the denoiser reads, (B, ...), on the device.

        Args:
            captions: B texts.
            live: Text encoders that are being trained: their token ids stay, beside the outputs of the
                others, for `conditioning` to finish.
        """

    def in_single_file(self, name: str) -> bool:
        """Whether a component's weights lie in the checkpoint that the base is."""
        return self._checkpoint is not None and self._checkpoint.holds(name)

    @cached_property
    def _checkpoint(self) -> SingleFile | None:
        """The single file that the base is, if it is one."""
        if self.base.kind != "file":
            return None
        return SingleFile(self.name, Path(self.base.location), Path(self.base.config))

    def _load(self, name: str) -> Any:
        cls = self.parts[name].load_class()
        if self._checkpoint and self._checkpoint.holds(name):
            loaded = self._checkpoint.load(self, name, cls, {"dtype": self._part_dtype(name)})
        else:
            loaded = self._load_folder(name, cls)
        if isinstance(loaded, nn.Module):
            loaded = loaded.to(self.home).requires_grad_(False).eval()
        return loaded

    def _part_dtype(self, name: str) -> torch.dtype:
        return torch.float32 if name == "vae" else self.dtype

    def _load_folder(self, name: str, cls: Any) -> Any:
        """From the base's folder; of a single file, from its folder of configs."""
        place = self.base.config if self.base.kind == "file" else self.base.location
        options: dict[str, Any] = {"subfolder": name, "local_files_only": self.base.kind != "hub"}
        if self.base.revision:
            options["revision"] = self.base.revision
        if _is_model(cls):
            options |= {"dtype": self._part_dtype(name), "use_safetensors": True, **self._variant(name)}
        try:
            return cls.from_pretrained(place, **options)
        except OSError as error:
            reason = str(error).splitlines()[0].rstrip(". ")
            raise BadInput(f"{place}/{name}", f"cannot be loaded ({reason})", "check the base") from error

    def _variant(self, name: str) -> dict[str, str]:
        """Folders that carry only half precision files name them *.fp16.safetensors."""
        if self.base.kind == "hub":
            return {}
        files = weight_files(self._folder() / name)
        return {"variant": "fp16"} if files and all(".fp16" in file.stem for file in files) else {}

    @classmethod
    @abstractmethod
    def pipeline_class(cls) -> Any:
        """The diffusers pipeline of this family (a slow import)."""

    @property
    def config_folder(self) -> Path:
        """Local folder with configs and tokenizers, and with the weights unless the base is a single file."""
        return self._folder()

    def _folder(self) -> Path:
        """Local folder of configs; of a hub id, its snapshot in the hub's cache."""
        if self.base.kind == "file":
            return Path(self.base.config)
        if self.base.kind == "folder":
            return Path(self.base.location)
        from huggingface_hub import snapshot_download

        patterns = [
            "model_index.json",
            *(f"{n}/*.{end}" for n in self.parts for end in ("json", "safetensors", "txt", "model")),
        ]
        revision = self.base.revision or None
        return Path(snapshot_download(self.base.location, revision=revision, allow_patterns=patterns))

    def _read_config(self, name: str, file: str) -> dict[str, Any]:
        path = self._folder() / name / file
        if not path.exists():
            raise BadInput(str(path), "is missing from the base", "add the base again from a complete folder")
        return read_json(path)


def joined(x_t: Tensor, cond: Conditioning) -> Tensor:
    """Latents with the channels that stand beside them, if there are any."""
    return torch.cat([x_t, cond["beside"].to(x_t)], dim=1) if "beside" in cond else x_t


def _is_model(cls: Any) -> bool:
    return issubclass(cls, nn.Module)
