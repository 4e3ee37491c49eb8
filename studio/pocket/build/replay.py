"""The work of a step as one recording of GPU commands: small networks wait for launches, not for arithmetic.

CUDA graphs as PyTorch's notes on them prescribe: buffers that stay, a few steps on a side stream first, all
random numbers drawn outside. On a CPU, or when told not to record, the work is simply done.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Inputs = dict[str, Tensor]
WARM_UP = 4  # steps before the recording: libraries choose their kernels in these


class NotRecorded(RuntimeError):
    """The recording failed; the process must be started again to work without one."""


class Replay:
    """Calls `work` with the inputs; on a GPU the fifth call records it and later ones replay that.

    Args:
        work: Reads tensors of the same shapes each time, changes others in place, returns nothing and never
            waits for the device.
        record: False = no recording.
    """

    def __init__(self, work: Callable[[Inputs], None], *, record: bool) -> None:
        self._work, self._record = work, record
        self._held: Inputs = {}
        self._graph: torch.cuda.CUDAGraph | None = None
        self._calls = 0
        self._side = torch.cuda.Stream() if record else None

    def __call__(self, inputs: Inputs) -> None:
        """Do the work once.

        Raises:
            NotRecorded: the recording failed.
        """
        if self._side is None:
            self._work(inputs)
            return
        for name, value in inputs.items():
            if name in self._held:
                self._held[name].copy_(value)
            else:
                self._held[name] = value.clone()
        self._calls += 1
        if self._calls <= WARM_UP:
            self._side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._side):
                self._work(self._held)
            torch.cuda.current_stream().wait_stream(self._side)
            return
        if self._graph is None:
            self._graph = self._recorded()
        self._graph.replay()

    def _recorded(self) -> torch.cuda.CUDAGraph:
        try:
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._work(self._held)
            torch.cuda.synchronize()
        except RuntimeError as error:
            raise NotRecorded(str(error)) from error
        return graph
