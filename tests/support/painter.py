"""A sampler without a model, for what is built on samples."""

from PIL import Image as Pixels

from registry.records import JobState, Sample
from studio.sampling.client import SamplerClient, SampleResult
from studio.sampling.task import SampleTask
from studio.workspace import Workspace


class Painter(SamplerClient):
    """Paints a plain picture at once; its worker dies after `most` of them."""

    def __init__(self, ws: Workspace, most: int = 10_000, *, idle: float = 600.0) -> None:
        super().__init__(ws, idle=idle)
        self.drawn: list[str] = []
        self._most = most

    def start(self, sample_id: str) -> None:
        """Paint it."""
        if len(self.drawn) == self._most:
            raise KeyboardInterrupt  # in the middle: the job is leased, nothing is written
        task = SampleTask.read(self._ws.sample_dir(sample_id))
        file = self._ws.sample_dir(sample_id) / "000.png"
        colour = (task.request.seed * 40 % 256, task.request.steps * 30 % 256, 60 * len(task.adapters))
        Pixels.new("RGB", (32, 32), colour).save(file)
        self._ws.catalog.update(Sample, sample_id, files=(self._ws.relative(file),))
        self.drawn.append(sample_id)
        self._result = SampleResult(JobState.DONE, result={"seconds": 0.5})
