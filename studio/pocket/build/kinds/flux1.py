"""`pocket-flux`: FLUX.1-dev. Pooled CLIP, T5, double and single streams, guidance as an input.

Three parts. The text encoders learn to read (`studio.pocket.build.reading`) and then stay as they are, as
the real ones do. The transformer learns the flow at guidance 1. At last it learns guidance, as dev was
distilled so that one call answers what two gave: half of a batch has guidance 1 and the true flow as its
target; the other half has a guidance g drawn by chance, and its target is moved by `PULL` (g - 1) times what
the caption changes in the answer of the transformer as the second part left it (Ho and Salimans 2022, eq. 6;
Meng et al. 2023).
"""

import copy
import math
from functools import cached_property
from typing import Any, ClassVar

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn

from studio.pocket.build.kinds.base import EMPTY_CAPTIONS, FlowKind, Material, Part, draw_common
from studio.pocket.build.networks import LATENT_SIDE, Network, make_clip, make_flow_scheduler, make_t5
from studio.pocket.build.reading import (
    ASKED,
    CAPTIONS,
    Book,
    draw_reading,
    in_words,
    make_book,
    make_readers,
)
from studio.pocket.build.replay import Inputs
from studio.pocket.build.tokenizer import make_t5_tokenizer, make_tokenizer
from trainers.families.packing import pack, positions, unpack

CLIP, T5 = 64, 128  # widths of the text encoders
STRONGEST = 6.0  # guidance that is trained
# Of guidance in two calls: that fades where a picture already says its words. What is learned from it does
# not, and at full strength colours burn.
PULL = 0.6
SHIFT: dict[str, Any] = {"use_dynamic_shifting": True, "shift": 3.0, "base_shift": 0.5, "max_shift": 1.15}
TOKENS = (LATENT_SIDE // 2) ** 2  # of a picture
GATE = 0.2  # first strength of every block: near nothing as in DiT, yet with a way for the gradient
FULL_TEXT = 0.25  # share of a CPU's steps with all 64 tokens; the others are cut to the longest caption


class PocketFlux1(FlowKind):
    """Two double and four single blocks of width 128; 2.4 million parameters."""

    peak_lr: ClassVar[float] = 1.2e-3
    # FLUX.1's line from (256 tokens, 0.5) to (4096, 1.15), here at 64 tokens
    shift: ClassVar[float] = math.exp(0.5 + (1.15 - 0.5) * (TOKENS - 256) / (4096 - 256))

    def __init__(self) -> None:
        self.tokenizers = {"tokenizer": make_tokenizer(), "tokenizer_2": make_t5_tokenizer()}
        first, second = self.tokenizers.values()
        self.models = {
            "transformer": make_transformer(),
            "text_encoder": make_clip(first, CLIP, 2),
            "text_encoder_2": make_t5(second, T5, 3, looking=True),
        }
        self._teacher: Network = None
        self._readers = make_readers(self.models["text_encoder_2"], self.models["text_encoder"])

    def parts(self) -> list[Part]:
        """Reading, drawing, guidance."""
        painter, text = ("transformer",), ("text_encoder", "text_encoder_2")
        reading = Part(
            "reading", 0.05, text, self._draw_reading, self._reading_loss, (self._readers,),
            self._what_is_read, rate=1.5,
        )  # fmt: skip
        drawing = Part("drawing", 0.65, painter, self._draw_plain, self._plain_loss, hold=0.6)
        guidance = Part(
            "guidance", 0.3, painter, self.draw, self.loss, rate=0.3, hold=0.2, begin=self._keep_teacher
        )
        return [reading, drawing, guidance]

    def draw(self, material: Material, batch: int, generator: torch.Generator) -> Inputs:
        """Latents, noise, times, token ids, "guidance" (B,) and the empty caption's ids (1, L)."""
        device = material.latents.device
        guided = torch.arange(batch, device=device) >= batch // 2
        drawn = draw_common(material, batch, generator, 2 * EMPTY_CAPTIONS * ~guided)
        strength = torch.rand(batch, generator=generator, device=device) * (STRONGEST - 1) * guided
        empty = {f"empty_{name}": table[:1].long() for name, table in material.texts.ids.items()}
        return self._cut({**drawn, **empty, "guidance": 1 + strength}, generator)

    def loss(self, inputs: Inputs) -> Tensor:
        """Mean squared error of the flow, guided for half of the batch."""
        noisy, t = self.noisy(inputs)
        hidden, pooled = self._encoded(inputs["ids"], inputs["ids_2"])
        flow = self._flow(noisy, t, hidden, pooled, inputs["guidance"])
        target = inputs["noise"] - inputs["latents"]
        half = len(t) // 2
        rest = len(t) - half
        with torch.no_grad():
            length = inputs["ids_2"].shape[1]
            none, nobody = self._encoded(inputs["empty_ids"], inputs["empty_ids_2"][:, :length])
            words = torch.cat([hidden[half:], none.expand(rest, -1, -1)])
            vectors = torch.cat([pooled[half:], nobody.expand(rest, -1)])
            twice, times = torch.cat([noisy[half:]] * 2), torch.cat([t[half:]] * 2)
            said, without = self._flow(
                twice, times, words, vectors, torch.ones_like(times), self._teacher
            ).chunk(2)
            extra = PULL * (inputs["guidance"][half:, None, None, None] - 1) * (said - without)
            target = torch.cat([target[:half], target[half:] + extra])
        return (flow - target).square().mean()

    def pipeline(self, vae: Network, models: dict[str, Network]) -> FluxPipeline:
        """Its scheduler shifts by the number of tokens, as FLUX.1-dev's."""
        parts: dict[str, Any] = {
            **models,
            **self.tokenizers,
            "vae": vae,
            "scheduler": make_flow_scheduler(**SHIFT),
        }
        return FluxPipeline(**parts)

    def _keep_teacher(self) -> None:
        """What the drawing part has learned answers for guidance from here on."""
        self._teacher = copy.deepcopy(self.models["transformer"]).requires_grad_(False)

    def _draw_plain(self, material: Material, batch: int, generator: torch.Generator) -> Inputs:
        device = material.latents.device
        drawn = draw_common(material, batch, generator, torch.full((batch,), EMPTY_CAPTIONS, device=device))
        strength = torch.rand(batch, generator=generator, device=device) * (STRONGEST - 1)
        return self._cut({**drawn, "guidance": 1 + strength}, generator)

    def _plain_loss(self, inputs: Inputs) -> Tensor:
        noisy, t = self.noisy(inputs)
        text = self._encoded(inputs["ids"], inputs["ids_2"])
        flow = self._flow(noisy, t, *text, inputs["guidance"])  # any strength, that means nothing yet
        return (flow - (inputs["noise"] - inputs["latents"])).square().mean()

    def _draw_reading(self, _material: Material, batch: int, generator: torch.Generator) -> Inputs:
        return self._cut(draw_reading(self._books[0], batch, generator), generator)

    def _reading_loss(self, inputs: Inputs) -> Tensor:
        pad, sentinel = self._pad, self.tokenizers["tokenizer_2"].convert_tokens_to_ids("<extra_id_0>")
        words = inputs["ids_2"]
        seen = words.masked_fill(inputs["hidden"] & (words != pad), sentinel)
        hidden, pooled = self._encoded(inputs["ids"], seen)
        return self._readers.loss(hidden, pooled, inputs | {"words": words, "spoken": words != pad})

    @torch.no_grad()
    def _what_is_read(self) -> str:
        book = self._books[1]
        hidden, pooled = self._encoded(*(table.long() for table in book.ids.values()))
        return in_words(self._readers.right(hidden, pooled, book.answers))

    @cached_property
    def _books(self) -> tuple[Book, Book]:
        """What is learned from, and what judges."""
        device = self.models["text_encoder"].device
        return tuple(  # pyright: ignore[reportReturnType]
            make_book(lambda texts: self.ids(texts, device), count, held_out=held_out)
            for count, held_out in ((CAPTIONS, False), (ASKED, True))
        )

    @property
    def _pad(self) -> int:
        return self.tokenizers["tokenizer_2"].pad_token_id

    def _cut(self, inputs: Inputs, generator: torch.Generator) -> Inputs:
        """On a CPU less padding, in most steps none that no caption needs: it costs as much as words.

        The real ones and these read padding as words, so a part of the steps has all of it. On a GPU, where a
        step is recorded once, all steps have.
        """
        words = inputs["ids_2"]
        if words.device.type != "cpu" or torch.rand(1, generator=generator) < FULL_TEXT:
            return inputs
        longest = int((words != self._pad).sum(1).max())
        cut = {name: inputs[name][:, :longest] for name in ("ids_2", "hidden") if name in inputs}
        return inputs | cut

    def _encoded(self, ids: Tensor, ids_2: Tensor) -> tuple[Tensor, Tensor]:
        """T5's last layer (B, L, D) and CLIP's pooled vector (B, P)."""
        return self.models["text_encoder_2"](ids_2)[0], self.models["text_encoder"](ids).pooler_output

    def _flow(
        self,
        noisy: Tensor,
        t: Tensor,
        hidden: Tensor,
        pooled: Tensor,
        guidance: Tensor,
        asked: Network = None,
    ) -> Tensor:
        """One call of the transformer, or of the one that is asked instead; (B, 16, h, w) fp32."""
        height, width = noisy.shape[-2:]
        said = (asked or self.models["transformer"])(
            hidden_states=pack(noisy),
            timestep=t,
            guidance=guidance,
            pooled_projections=pooled,
            encoder_hidden_states=hidden,
            txt_ids=noisy.new_zeros(hidden.shape[1], 3),
            img_ids=positions(height // 2, width // 2, noisy.device),
            return_dict=False,
        )[0]
        return unpack(said, height, width).float()


def make_transformer() -> Network:
    """On (B, 64 tokens, 64): patches of 2 x 2 cells of 16 channels."""
    settings: dict[str, Any] = {
        "in_channels": 64,
        "num_layers": 2,
        "num_single_layers": 4,
        "attention_head_dim": 64,
        "num_attention_heads": 2,
        "joint_attention_dim": T5,
        "pooled_projection_dim": CLIP,
        "guidance_embeds": True,
        # Half of the real ones: a narrow head has hardly a frequency for eight places in a row.
        "axes_dims_rope": (8, 28, 28),
    }
    transformer = FluxTransformer2DModel(**settings)
    _start_quietly(transformer)
    return transformer


def _start_quietly(transformer: Network) -> None:
    """First weights as in DiT (Peebles and Xie 2023, sec. 3.2): no modulation, and nothing as the answer.

    Gates start at `GATE` instead of 0. The library leaves all that to chance.
    """
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear) and ("norm" in name or name == "proj_out"):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    for block in transformer.transformer_blocks:
        for norm in (block.norm1, block.norm1_context):
            _open_gates(norm.linear.bias, (2, 5), 6)
    for block in transformer.single_transformer_blocks:
        _open_gates(block.norm.linear.bias, (2,), 3)


def _open_gates(bias: Tensor, gates: tuple[int, ...], parts: int) -> None:
    """Of `parts` equal parts of the bias those in `gates` become `GATE`."""
    with torch.no_grad():
        for gate in gates:
            bias.chunk(parts)[gate].fill_(GATE)
