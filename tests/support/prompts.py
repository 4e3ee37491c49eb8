"""Toy bases whose text encoders have layers to skip, and plain calls of transformers to compare with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from studio.sampling.prompts.encode import Schedule
from trainers.families import FAMILIES, toy
from trainers.families.common import TextToImage
from trainers.guidance import SHARE

LAYERS = 4  # of CLIP: two are too few to skip some
WIDE = {"hidden_act": "gelu", "width": 48}
Find = Callable[[str], TextToImage]


def with_layers(family: str) -> dict[str, Any]:
    """A toy base whose text encoders have `LAYERS` layers."""
    parts = FAMILIES[family].load_class().tiny(0)
    more: dict[str, dict[str, Any]] = {
        "sd15": {"text_encoder": {}},
        "sd21": {"text_encoder": {}},
        "sdxl": {"text_encoder": {}, "text_encoder_2": WIDE | {"projection": 24}},
        "sd35": {"text_encoder": {"projection": 32}, "text_encoder_2": WIDE | {"projection": 48}},
        "flux1": {"text_encoder": {}},
    }
    torch.manual_seed(3)
    for name, config in more[family].items():
        tokenizer = parts[name.replace("text_encoder", "tokenizer")]
        parts[name] = toy.clip(tokenizer, num_hidden_layers=LAYERS, **config)
        norm = getattr(parts[name], "text_model", parts[name]).final_layer_norm
        torch.nn.init.normal_(norm.bias, 0.3, 0.1)  # as drawn its outputs have a mean of zero
    return parts


class Plain:
    """A text encoder and its tokenizer, loaded by transformers alone."""

    def __init__(self, family: TextToImage, number: str = "") -> None:
        from transformers import AutoTokenizer, CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel

        folder, name = Path(family.base.location), f"text_encoder{number}"
        classes = {
            kind.__name__: kind for kind in (CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel)
        }
        kind = classes[family.config(name)["architectures"][0]]
        self.model: Any = kind.from_pretrained(folder / name, dtype=torch.float32).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder / f"tokenizer{number}")

    def tokens(self, *texts: str) -> list[int]:
        return [id for text in texts for id in self.tokenizer(text, add_special_tokens=False).input_ids]

    def clip(self, tokens: list[int], layer: int | None = None) -> tuple[Tensor, Tensor]:
        """Hidden states and first output of 77 tokens: the last ones after the norm, or those of a layer."""
        ends = [self.tokenizer.bos_token_id], [self.tokenizer.eos_token_id]
        ids = ends[0] + tokens + ends[1]
        ids += [self.tokenizer.pad_token_id] * (77 - len(ids))
        assert len(ids) == 77
        with torch.no_grad():
            said = self.model(torch.tensor([ids]), output_hidden_states=True)
        return (said.last_hidden_state if layer is None else said.hidden_states[layer]), said

    def t5(self, tokens: list[int], length: int) -> Tensor:
        ids = [*tokens[: length - 1], self.tokenizer.eos_token_id]
        ids += [self.tokenizer.pad_token_id] * (length - len(ids))
        with torch.no_grad():
            return self.model(torch.tensor([ids])).last_hidden_state


def weighted(hidden: Tensor, weights: list[float], *, start: int = 1) -> Tensor:
    """Every output times its token's weight, then the mean of all as it was."""
    column = torch.ones(hidden.shape[1])
    column[start : start + len(weights)] = torch.tensor(weights)
    scaled = hidden * column[:, None]
    return scaled * (hidden.mean() / scaled.mean())


def at(schedule: Schedule, number: int = 0) -> dict[str, Tensor]:
    cond = schedule.at(number)
    assert SHARE not in cond
    return cond


def same(one: Tensor, other: Tensor) -> None:
    assert one.shape == other.shape
    assert float((one - other).abs().max()) < 2e-5 * float(other.abs().max())
