"""What happens between steps: checkpoints, previews, the probe, the check for a dead adapter."""

import logging
import math
from collections.abc import Callable
from typing import Any

from trainers.checkpoints import Learning, Store, snapshot
from trainers.guards import DEAD_AFTER, NotFinite
from trainers.metrics import Reporter
from trainers.preview import Previewer
from trainers.probe import Probe
from trainers.readback import ReadBack
from trainers.recipe import Recipe
from trainers.saving import Saver

log = logging.getLogger(__name__)

FIRST_EFFECT = 20  # steps at least before the output must differ: half precision does not show the first ones


class Milestones:
    """Looks after each step whether something is due. All processes drain; only the first one writes.

    Args:
        recipe: Says what is due when.
        learning: What is saved.
        store: Where to.
        readback: Figures still on their way.
        reporter: Takes the news.
        previewer: None = no previews, or not the first process.
        probe: What checkpoints are ranked by; None = not the first process.
        numbers: More for state.json.
        metadata: Of the adapter file at a step.
        writes: Whether this is the first process.
        publish: Writes a result that is no adapter, after the last step.
    """

    def __init__(
        self,
        recipe: Recipe,
        learning: Learning,
        store: Store,
        readback: ReadBack,
        reporter: Reporter,
        *,
        previewer: Previewer | None,
        probe: Probe | None,
        numbers: Callable[[], dict[str, Any]],
        metadata: Callable[[int], dict[str, str]],
        writes: bool,
        publish: Callable[[], None] = lambda: None,
    ) -> None:
        self.recipe, self.learning, self.store = recipe, learning, store
        self.saver = Saver(store)
        self.readback, self.reporter = readback, reporter
        self.previewer, self.probe, self.numbers, self.metadata = previewer, probe, numbers, metadata
        self.writes, self.publish = writes, publish
        self.best: tuple[int, float] | None = None  # step and `probe.Figures.judged`
        self.step = 0
        self.saved: int | None = None  # step of the newest checkpoint
        self._dead_check = math.ceil(DEAD_AFTER * recipe.train.max_steps)
        self._effect_check = min(max(self._dead_check, FIRST_EFFECT), recipe.train.max_steps)
        if not learning.trainables.separable:
            self._effect_check = 0  # nothing to switch off

    def begin(self, start: int) -> None:
        """Before the first step of this attempt; `start` steps are done."""
        self.step = start
        self.saved = start if start else None
        self.reporter.begin(start, self.recipe.train.max_steps)
        self._preview()
        self.reporter.phase("training")
        self.readback.restart_clock()

    def after(self, step: int) -> None:
        """After step `step`."""
        self.step = step
        self.saver.check()
        if step == self._dead_check and self.learning.trainables.movement() == 0:
            self.reporter.warn(
                f"the adapter has not moved in {step} steps: raise optimizer.lr, check adapter.targets"
            )
        elif step == self._effect_check and self.probe and not self.probe.has_effect():
            self.reporter.warn(
                f"after {step} steps the base answers with the adapter as without it: check adapter.targets, "
                "optimizer.lr and train.precision"
            )
        last = step == self.recipe.train.max_steps
        due = step % self.recipe.checkpoints.every == 0 or last
        if due:
            self._checkpoint()
        if self._preview() or due:
            self.reporter.phase("training")
            self.readback.restart_clock()

    def end(self) -> None:
        """After the last step of this attempt: a checkpoint if there is none of it; the result when
        finished."""
        if self.saved != self.step:
            self._checkpoint()
        self.saver.finish()
        if self.writes and self.step == self.recipe.train.max_steps and (folder := self.store.latest()):
            self.store.publish(folder)
            self.publish()

    def _checkpoint(self) -> None:
        if not all(p.detach().isfinite().all() for p in self.learning.parameters):
            self.readback.drain()  # names the batch when the loss says it too
            raise NotFinite("adapter", self.step, [])
        figures = self.probe() if self.probe and self.recipe.checkpoints.keep_best else None
        named = figures.named() if figures else {}
        self.readback.drain(named)
        self.saved = self.step
        if not self.writes:
            return
        self.reporter.phase("saving")
        if figures and (self.best is None or figures.judged < self.best[1]):
            self.best = (self.step, figures.judged)
        best = self.best[0] if self.best else None
        numbers = {"loss": self.reporter.loss, "probe_loss": None, **named, "best": self.best}
        more, metadata = numbers | self.numbers(), self.metadata(self.step)
        self.saver.save(
            lambda: snapshot(self.step, self.learning, more, metadata),
            best,
            written=lambda: self.reporter.best(best),
        )

    def _preview(self) -> bool:
        if self.previewer is None or not self.previewer.due(self.step, self.recipe.train.max_steps):
            return False
        self.previewer.draw(self.step)
        return True
