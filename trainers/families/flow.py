"""What SD3.5 and FLUX.1 share: flow matching, T5, times from 0 to 1."""

from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from trainers.families.common import TextToImage
from trainers.fitting import refuse_fields
from trainers.flow_matching import FlowMatching, flow_matching, make_shift

if TYPE_CHECKING:
    from trainers.recipe import ObjectiveSection


class FlowFamily(TextToImage):
    """A transformer over patches of 2x2 latent cells, trained by flow matching."""

    denoiser_name: ClassVar[str] = "transformer"
    bucket_multiple: ClassVar[int] = 64
    patch: ClassVar[int] = 2

    def make_objective(self, section: "ObjectiveSection") -> FlowMatching:
        """Flow matching with the shift of the base's scheduler, unless the recipe says otherwise."""
        if not self.guidance_input:
            refuse_fields(section, ("guidance",), "is an input that this base does not have")
        return flow_matching(self.scheduler_config(), section, patch=self.patch)

    def sampler_time(self, timestep: Tensor) -> Tensor:
        """0 to 1000 -> 0 to 1."""
        return timestep / 1000

    def sampler_options(self, steps: int, shape: tuple[int, ...]) -> dict[str, Any]:
        """{"mu": ...} where the scheduler shifts by resolution."""
        del steps
        config = self.scheduler_config()
        if not config.get("use_dynamic_shifting"):
            return {}
        tokens = shape[-2] * shape[-1] // self.patch**2
        return {"mu": make_shift(config, "dynamic").mu(tokens)}
