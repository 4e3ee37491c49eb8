"""A plain vision transformer (Dosovitskiy et al. 2020, arXiv:2010.11929) as timm stores it: its forward pass.

The shape is read from the weights, so that any `vit_*` of timm loads: with or without class token, pooled by
it or by the mean, normalised before or after pooling. Shapes: B pictures, N tokens, D width.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from registry.errors import BadInput
from studio.datasets.captioners.base import Place

WEIGHTS = "model.safetensors"
HEAD_WIDTH = 64  # of every ViT from tiny to large
EPS = 1e-6  # of timm's; those made from CLIP have another one and are not read here
KNOWN = re.compile(
    r"(patch_embed\.proj|norm_pre|norm|fc_norm|head)\.(weight|bias)|pos_embed|cls_token"
    r"|blocks\.\d+\.((norm1|norm2|mlp\.fc[12]|attn\.(qkv|proj|q_norm|k_norm))\.(weight|bias)|ls[12]\.gamma)"
)


class PlainViT:
    """The model.

    Args:
        weights: timm's state dict, float.
        heads: Of each attention.
        tanh: Whether GELU is the tanh approximation.
        pool: "avg" (mean over the patches) or "token" (the class token).
    """

    def __init__(self, weights: Mapping[str, Tensor], *, heads: int, tanh: bool, pool: str) -> None:
        self._weights, self._heads, self._pool = dict(weights), heads, pool
        self._gelu = "tanh" if tanh else "none"
        self._depth = 1 + max(int(key.split(".")[1]) for key in weights if key.startswith("blocks."))

    @classmethod
    def load(cls, place: Place, config: Mapping[str, Any], device: torch.device) -> "PlainViT":
        """The model of a folder in timm's layout, in fp32.

        Raises:
            BadInput: not readable, or no plain vision transformer.
        """
        try:
            weights = {k: v.to(device, torch.float32) for k, v in load_file(place.file(WEIGHTS)).items()}
        except (SafetensorError, OSError, ValueError) as error:
            raise BadInput(f"{place.name}/{WEIGHTS}", f"cannot be read ({error})", "get it again") from error
        needed = {"patch_embed.proj.weight", "pos_embed", "blocks.0.attn.qkv.weight", "head.weight"}
        missing = sorted(needed - weights.keys())
        foreign = sorted(key for key in weights if not KNOWN.fullmatch(key))
        if missing or foreign:
            what = f"it lacks {missing[0]}" if missing else f"it has {foreign[0]}"
            raise BadInput(place.name, f"is no plain vision transformer: {what}", "use another")
        options = config.get("model_args") or {}
        width = weights["pos_embed"].shape[-1]
        return cls(
            weights,
            heads=int(options.get("num_heads") or max(1, width // HEAD_WIDTH)),
            tanh=options.get("act_layer") == "gelu_tanh",
            pool=str(options.get("global_pool") or config.get("global_pool") or "token"),
        )

    @property
    def labels(self) -> int:
        """How many classes."""
        return self._weights["head.weight"].shape[0]

    def parameters(self) -> Iterator[Tensor]:
        """All weights."""
        return iter(self._weights.values())

    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, labels) logits."""
        w = self._weights
        kernel = w["patch_embed.proj.weight"]
        x = F.conv2d(pixels, kernel, w.get("patch_embed.proj.bias"), stride=kernel.shape[-1])
        x = self._placed(x.flatten(2).transpose(1, 2))
        x = self._norm(x, "norm_pre")
        for number in range(self._depth):
            x = self._block(x, f"blocks.{number}.")
        x = self._norm(x, "norm")
        tokens = "cls_token" in w
        x = x[:, 0] if self._pool == "token" and tokens else x[:, int(tokens) :].mean(1)
        return F.linear(self._norm(x, "fc_norm"), w["head.weight"], w.get("head.bias"))

    def _placed(self, x: Tensor) -> Tensor:
        """(B, N, D) patches with class token and positions; older models give the class token a position."""
        w = self._weights
        if "cls_token" not in w:
            return x + w["pos_embed"]
        token = w["cls_token"].expand(len(x), -1, -1)
        if w["pos_embed"].shape[1] == x.shape[1]:
            return torch.cat([token, x + w["pos_embed"]], 1)
        return torch.cat([token, x], 1) + w["pos_embed"]

    def _block(self, x: Tensor, at: str) -> Tensor:
        w = self._weights
        x = x + self._attention(self._norm(x, f"{at}norm1"), f"{at}attn.") * w.get(f"{at}ls1.gamma", 1)
        hidden = self._linear(self._norm(x, f"{at}norm2"), f"{at}mlp.fc1")
        hidden = self._linear(F.gelu(hidden, approximate=self._gelu), f"{at}mlp.fc2")
        return x + hidden * w.get(f"{at}ls2.gamma", 1)

    def _attention(self, x: Tensor, at: str) -> Tensor:
        batch, count, width = x.shape
        mixed = self._linear(x, f"{at}qkv").view(batch, count, 3, self._heads, -1)
        query, key, value = mixed.permute(2, 0, 3, 1, 4)  # each (B, heads, N, D / heads)
        query, key = self._norm(query, f"{at}q_norm"), self._norm(key, f"{at}k_norm")
        out = F.scaled_dot_product_attention(query, key, value)
        return self._linear(out.transpose(1, 2).reshape(batch, count, width), f"{at}proj")

    def _linear(self, x: Tensor, at: str) -> Tensor:
        return F.linear(x, self._weights[f"{at}.weight"], self._weights.get(f"{at}.bias"))

    def _norm(self, x: Tensor, at: str) -> Tensor:
        """Layer norm, where the model has it."""
        weight = self._weights.get(f"{at}.weight")
        return (
            x
            if weight is None
            else F.layer_norm(x, x.shape[-1:], weight, self._weights.get(f"{at}.bias"), EPS)
        )
