"""All trainable tensors of a group in one flat buffer, weights and gradients alike.

An adapter has hundreds of small tensors. Flat, the optimizer, the gradient norm, the running mean, the
exchange between processes and the check for finite values are one operation each instead of hundreds: on a
CPU and the pocket base a tenth of the step.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Flat:
    """One buffer behind many parameters: each parameter's data and gradient become views of it.

    Args:
        named: Parameters by key, fp32 and on one device; changed in place.
        role: Whose they are: "denoiser", "text" or "tokens". Decides the learning rate and when it ends.
        factor: On the role's learning rate.
        decay: Whether weight decay acts on them.
    """

    def __init__(
        self,
        named: Mapping[str, nn.Parameter],
        role: str = "denoiser",
        *,
        factor: float = 1.0,
        decay: bool = True,
    ) -> None:
        self.named, self.role, self.factor, self.decay = dict(named), role, factor, decay
        self.parameter = nn.Parameter(torch.cat([p.detach().reshape(-1) for p in self.named.values()]))
        self._gradient = torch.zeros_like(self.parameter)
        self.parameter.grad = self._gradient
        data, gradients = self.views(self.parameter.detach()), self.views(self._gradient)
        for key, parameter in self.named.items():
            parameter.data = data[key]
            parameter.grad = gradients[key]  # backward adds into it, in place

    def views(self, buffer: Tensor) -> dict[str, Tensor]:
        """A buffer of this layout by key, without copying."""
        parts = buffer.split([p.numel() for p in self.named.values()])
        return {key: part.view(p.shape) for (key, p), part in zip(self.named.items(), parts, strict=True)}

    def freeze(self) -> None:
        """No more gradients; the optimizer passes the group over."""
        for parameter in self.named.values():
            parameter.requires_grad_(False)
            parameter.grad = None
        self.parameter.grad = None

    @property
    def frozen(self) -> bool:
        """Whether `freeze` was called."""
        return self.parameter.grad is None
