"""TensorBoard and Weights & Biases, through accelerate's trackers."""

import importlib.util
import os
from collections.abc import Callable
from typing import Any

from trainers.metrics import Reporter
from trainers.recipe import Recipe
from trainers.recipe_text import flatten
from trainers.rundir import TENSORBOARD, RunEnv

Track = Callable[[dict[str, Any]], None]


def open_trackers(recipe: Recipe, env: RunEnv, reporter: Reporter, start: int) -> list[Any]:
    """The trackers that the recipe asks for; one that does not start is a warning, not a failure.

    Args:
        recipe: Its log section; the whole recipe is shown in Weights & Biases.
        env: Names the run.
        reporter: Takes warnings and knows the folder.
        start: Points after this step are replaced when a run is resumed.
    """
    from accelerate.tracking import TensorBoardTracker, WandBTracker

    makers: list[tuple[str, Callable[[], Any]]] = []
    if recipe.log.tensorboard:
        folder = reporter.rundir.file(TENSORBOARD)
        makers.append(("TensorBoard", lambda: TensorBoardTracker("", folder, purge_step=start + 1)))
    if recipe.log.wandb and importlib.util.find_spec("wandb") is None:
        reporter.warn("Weights & Biases is not installed: pip install 'lora-studio[wandb]'")
    elif (
        recipe.log.wandb and not os.environ.get("WANDB_API_KEY") and os.environ.get("WANDB_MODE") != "offline"
    ):
        reporter.warn("Weights & Biases needs WANDB_API_KEY in the environment; nothing is sent")
    elif recipe.log.wandb:
        options = {"name": env.name, "id": env.run_id, "resume": "allow", "dir": str(reporter.rundir.path)}
        config = flatten(recipe.model_dump(mode="json"))
        project = recipe.log.wandb_project
        makers.append(("Weights & Biases", lambda: WandBTracker(project, config=config, **options)))
    trackers: list[Any] = []
    for label, make in makers:
        try:
            tracker = make()
            tracker.start()
            trackers.append(tracker)
        except Exception as error:  # noqa: BLE001 - third-party services fail in their own ways
            reporter.warn(f"{label} does not start: {str(error)[:200]}")
    return trackers


def track_into(trackers: list[Any]) -> Track:
    """Sends a metric line's numbers to all trackers."""

    def track(line: dict[str, Any]) -> None:
        values = {key: value for key, value in line.items() if key != "step" and value is not None}
        for tracker in trackers:
            tracker.log(values, step=line["step"])

    return track
