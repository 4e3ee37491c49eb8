"""The training step on a GPU: adapters that compute in 16 bits."""

import pytest
import torch

from tests.unit.test_packed import Model, cosine
from trainers.kernels import settle_kernels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda")


def gradient_and_kernels(model: Model):
    """The gradient of a step, and how many kernels it starts."""
    _, found = model.step()
    found = found.clone()
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profile:
        model.step()
        torch.cuda.synchronize()
    return found, sum("LaunchKernel" in event.name for event in profile.events())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_packed_adapters_have_the_gradients_of_fp32_and_start_fewer_kernels(dtype, tiny_sd15):
    settle_kernels()
    exact, _ = gradient_and_kernels(Model(tiny_sd15, torch.float32, device=CUDA))
    plain, many = gradient_and_kernels(Model(tiny_sd15, dtype, device=CUDA))
    packed, few = gradient_and_kernels(Model(tiny_sd15, dtype, device=CUDA, packed=True))
    assert cosine(packed, exact) > min(0.999, cosine(plain, exact) - 1e-4)
    assert cosine(packed, plain) > 0.999
    assert few < 0.8 * many
