"""All trainable tensors of a group in one flat buffer, weights and gradients alike.

An adapter has hundreds of small tensors. Flat, the optimizer, the gradient norm, the running mean, the
exchange between processes and the check for finite values are one operation each instead of hundreds: on a
CPU and the pocket base a tenth of the step.

Where layers compute in 16 bits (`trainers.packed`) they hold stand-ins: the same values rounded, views of one
buffer as well. One copy brings them up to date after a step, one addition takes their gradients home.
"""

from collections.abc import Iterable, Mapping

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
        self._rounded: Tensor | None = None
        self._stand_ins: dict[str, nn.Parameter] = {}

    def views(self, buffer: Tensor) -> dict[str, Tensor]:
        """A buffer of this layout by key, without copying."""
        parts = buffer.split([p.numel() for p in self.named.values()])
        return {key: part.view(p.shape) for (key, p), part in zip(self.named.items(), parts, strict=True)}

    def freeze(self) -> None:
        """No more gradients; the optimizer passes the group over."""
        for parameter in (*self.named.values(), *self._stand_ins.values()):
            parameter.requires_grad_(False)
            parameter.grad = None
        self.parameter.grad = None

    def stand_ins(self, dtype: torch.dtype) -> dict[str, nn.Parameter]:
        """Parameters by key for layers to compute with in place of these, rounded to `dtype`.

        Their gradients are of that dtype, too, and stay with them until `gather`.
        """
        self._rounded = self.parameter.detach().to(dtype)
        self._stand_ins = {key: nn.Parameter(view) for key, view in self.views(self._rounded).items()}
        return self._stand_ins

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring the stand-ins up to date, whenever the values were written; nothing to do without any."""
        if self._rounded is not None:
            self._rounded.copy_(self.parameter)

    @torch.no_grad()
    def gather(self) -> None:
        """Add the stand-ins' gradients to the fp32 ones, after each backward pass.

        Autograd hands theirs over as they are; to add each into a view would be an operation a tensor.
        """
        stand_ins = self._stand_ins.values()
        if all(parameter.grad is None for parameter in stand_ins):
            return
        assert self._rounded is not None
        nothing = self._rounded.new_zeros(())
        flat = [nothing.expand(p.numel()) if p.grad is None else p.grad.reshape(-1) for p in stand_ins]
        self._gradient.add_(torch.cat(flat))
        self.drop()

    def drop(self) -> None:
        """Forget the stand-ins' gradients."""
        for parameter in self._stand_ins.values():
            parameter.grad = None

    @property
    def frozen(self) -> bool:
        """Whether `freeze` was called."""
        return self.parameter.grad is None


def refresh(flats: Iterable[Flat]) -> None:
    """Bring the stand-ins of all groups up to date."""
    for flat in flats:
        flat.refresh()
