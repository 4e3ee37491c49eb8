"""What every family of today shares: a KL autoencoder, and captions read by one or several text encoders.

Each text encoder has a tokenizer of the same number: `tokenizer_2` for `text_encoder_2`. Conditioning comes
in three stages, and `conditioning` takes it from either of the first two to the last:

- token ids: `input_ids`, `input_ids_2`, ...
- what single encoders say: `text_encoder.hidden`, `text_encoder_2.pooled`, ...
- what the denoiser reads: `hidden` (B, L, D), and `pooled` (B, P) where it reads that.

A caption can be half encoded: encoders that are being trained keep token ids, frozen ones are asked once.
"""

from abc import abstractmethod
from collections.abc import Collection
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from registry.errors import BadInput
from trainers.families.base import Conditioning, Family

CLIP_TOKENS = 77  # positions of CLIP's text encoder, start and end included
LONGEST_TEXT = 512  # tokens that T5 reads at most
FEWEST_TOKENS = 256  # of a vocabulary: all bytes


class TextToImage(Family):
    """KL autoencoder (Kingma and Welling 2013) and numbered text encoders."""

    clip_layers: ClassVar[bool] = True  # reads hidden states of CLIP, not only what is pooled
    clip_from_end: ClassVar[int] = 0  # layers behind the one that is read

    @property
    def latent_factor(self) -> int:
        """8 in the real bases: each level of the VAE but the last halves the side."""
        return 2 ** (len(self.config("vae")["block_out_channels"]) - 1)

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) in [-1, 1] -> mean and standard deviation, each (B, C, H / 8, W / 8), scaled."""
        vae = self.part("vae")
        posterior = vae.encode(pixels.to(self.device, vae.dtype)).latent_dist
        scale = vae.config.scaling_factor
        return (posterior.mean - (vae.config.shift_factor or 0.0)) * scale, posterior.std * scale

    @torch.no_grad()
    def decode_image(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) scaled latents -> (B, 3, 8 h, 8 w) in about [-1, 1]."""
        vae = self.part("vae")
        latents = latents.to(self.device, vae.dtype) / vae.config.scaling_factor
        return vae.decode(latents + (vae.config.shift_factor or 0.0), return_dict=False)[0].float()

    def most_clip_skip(self, text_encoder: str) -> int:
        """Largest `clip_skip`: the first layer is left."""
        return int(self.config(text_encoder)["num_hidden_layers"]) - self.clip_from_end

    @property
    def text_length(self) -> int:
        """Tokens that T5 reads; the recipe's choice goes before the pipeline's.

        A base whose tokenizer is made for less gets less: small ones are trained that way.
        """
        return self.use.text_length or min(self.default_text_length, self._tokenizer_limit)

    @cached_property
    def _tokenizer_limit(self) -> int:
        """`model_max_length` of T5's tokenizer; old folders say nothing, or 1e30."""
        name = tokenizer_of(self.t5_encoder)
        if not self.t5_encoder or not (self._folder() / name / "tokenizer_config.json").exists():
            return LONGEST_TEXT
        return int(self._read_config(name, "tokenizer_config.json").get("model_max_length") or LONGEST_TEXT)

    @property
    def default_text_length(self) -> int:
        """`max_sequence_length` of the family's pipeline; 0 = the family has no T5."""
        return 0

    def cache_facts(self) -> list[Any]:
        """How much T5 reads."""
        return [self.text_length] if self.t5_encoder else []

    def length_of(self, text_encoder: str) -> int:
        """Tokens that a text encoder reads, start and end included."""
        return self.text_length if text_encoder == self.t5_encoder else CLIP_TOKENS

    def tokenize(self, captions: list[str]) -> Conditioning:
        """{"input_ids": (B, 77) int64, ...}; what is longer is cut, see `tokens_cut`."""
        return {ids_key(name): self._token_ids(name, captions) for name in self.text_encoder_names}

    def tokens_cut(self, caption: str) -> int:
        """Tokens beyond those that fit into the encoder that reads longest."""
        reader = self.text_encoder_names[-1]
        ids = self.part(tokenizer_of(reader))(caption, verbose=False).input_ids
        return max(0, len(ids) - self.length_of(reader))

    def conditioning(self, cond: Conditioning) -> Conditioning:
        """{"hidden", ...}: what the denoiser reads; see the three stages above."""
        return cond if "hidden" in cond else self.combine(self._outputs(cond))

    @torch.no_grad()
    def encode_text(self, captions: list[str], live: Collection[str] = ()) -> Conditioning:
        """Captions -> what the denoiser reads; encoders in `live` keep their token ids, see above."""
        tokens = {key: value.to(self.device) for key, value in self.tokenize(captions).items()}
        if not live:
            return self.conditioning(tokens)
        kept = {ids_key(name): tokens.pop(ids_key(name)) for name in live}
        return kept | self._outputs(tokens)

    @abstractmethod
    def encode_ids(self, text_encoder: str, ids: Tensor, clip_skip: int = 0) -> Conditioning:
        """(B, L) token ids -> what one encoder says: "hidden" (B, L, D), "pooled" (B, P), or both.

        `clip_skip` leaves out layers of CLIP: 0 and 1 = none, 2 = the last of those that the family reads.
        """

    @abstractmethod
    def combine(self, outputs: Conditioning) -> Conditioning:
        """Outputs of all encoders -> what the denoiser reads."""

    def _outputs(self, cond: Conditioning) -> Conditioning:
        outputs = {key: value for key, value in cond.items() if "." in key}
        for name in self.text_encoder_names:
            if (ids := cond.get(ids_key(name))) is not None:
                outputs |= {f"{name}.{key}": value for key, value in self.encode_ids(name, ids).items()}
        return outputs

    def _token_ids(self, text_encoder: str, captions: list[str]) -> Tensor:
        encoded = self.part(tokenizer_of(text_encoder))(
            captions,
            padding="max_length",
            max_length=self.length_of(text_encoder),
            truncation=True,
            return_tensors="pt",
        )
        return encoded.input_ids

    def _load(self, name: str) -> Any:
        loaded = super()._load(name)
        if name.startswith("tokenizer"):
            # An empty folder loads as a tokenizer of two tokens; old folders load with a length of 1e30.
            if len(loaded) < FEWEST_TOKENS:
                raise BadInput(
                    f"{self.base.location}/{name}", f"has only {len(loaded)} tokens", "the base is incomplete"
                )
            loaded.model_max_length = self.length_of(name.replace("tokenizer", "text_encoder"))
        if name in self.text_encoder_names:
            _drop_nothing(loaded)
        return loaded


def _drop_nothing(encoder: nn.Module) -> None:
    """T5 brings a dropout of 0.1 that gradient checkpointing or adapter dropout would wake up."""
    for layer in encoder.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
        elif isinstance(getattr(layer, "dropout", None), float):
            setattr(layer, "dropout", 0.0)  # noqa: B010 # T5's attention has a number there, no module


def ids_key(text_encoder: str) -> str:
    """Key of an encoder's token ids: text_encoder_2 -> input_ids_2."""
    return text_encoder.replace("text_encoder", "input_ids")


def tokenizer_of(text_encoder: str) -> str:
    """text_encoder_2 -> tokenizer_2."""
    return text_encoder.replace("text_encoder", "tokenizer")


def penultimate(encoder: Any, ids: Tensor, clip_skip: int = 0) -> tuple[Tensor, Tensor]:
    """Hidden states before CLIP's last layer, without the final norm, and its first output.

    That output is the pooled and projected vector for a CLIPTextModelWithProjection. SDXL and SD3 read this
    layer (Podell et al. 2023, "SDXL", sec. 2.1), or earlier ones with a `clip_skip` above 1.
    """
    said = encoder(ids, output_hidden_states=True)
    return said.hidden_states[-1 - max(1, clip_skip)], said[0]


def last(encoder: Any, ids: Tensor, clip_skip: int = 0) -> Tensor:
    """CLIP's last hidden states after the final norm; with a `clip_skip` above 1 earlier ones, normed too."""
    if clip_skip <= 1:
        return encoder(ids)[0]
    hidden = encoder(ids, output_hidden_states=True).hidden_states[-clip_skip]
    return getattr(encoder, "text_model", encoder).final_layer_norm(hidden)
