"""Trains a run directory of ours with diffusers' own `train_dreambooth_lora.py`, for `train_vs_plain`.

    python -m benchmarks.diffusers_script SCRIPT RUN

SCRIPT is that file in somebody's copy of diffusers (examples/dreambooth); nothing of it is kept here. It has
one caption for all pictures, one rank, on the projections of attention, and no weight on the loss: the recipe
must be so, too. It crops and resizes with torchvision; where that is not installed, `benchmarks.transforms`
stands in for it.
"""

import runpy
import sys
from pathlib import Path
from types import ModuleType

from trainers.recipe import Recipe, load_frozen
from trainers.rundir import RunDir

OUT = "theirs"  # in the run directory


def arguments(rundir: RunDir, recipe: Recipe) -> list[str]:
    """Of the script's command line."""
    items, rates, train = rundir.read_manifest(), recipe.optimizer, recipe.train
    assert recipe.objective.snr_gamma is None
    assert not recipe.data.caption_dropout
    assert recipe.adapter.scale_alpha == recipe.adapter.rank, "the script has no alpha"
    (caption,) = {item.caption for item in items}
    options = {
        "pretrained_model_name_or_path": rundir.read_env().base_location,
        "instance_data_dir": rundir.resolve(items[0].image).parent,
        "instance_prompt": caption,
        "output_dir": rundir.file(OUT),
        "resolution": train.resolution,
        "train_batch_size": train.batch_size,
        "gradient_accumulation_steps": train.accumulate,
        "max_train_steps": train.max_steps,
        "checkpointing_steps": 2 * train.max_steps,
        "max_grad_norm": train.max_grad_norm,
        "seed": train.seed,
        "rank": recipe.adapter.rank,
        "learning_rate": rates.lr,
        "lr_scheduler": recipe.schedule.name,
        "lr_warmup_steps": round(recipe.schedule.warmup * train.max_steps),
        "adam_beta1": rates.beta1,
        "adam_beta2": 0.999 if rates.beta2 is None else rates.beta2,
        "adam_weight_decay": rates.weight_decay,
        "adam_epsilon": rates.eps,
        "report_to": "tensorboard",
    }
    return [f"--{name}={value}" for name, value in options.items()]


def main(script: str, run: str) -> None:
    """Train."""
    rundir = RunDir(Path(run))
    words = arguments(rundir, load_frozen(rundir.file("recipe.json")))
    try:
        import torchvision  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        import diffusers  # noqa: F401 - these ask what is installed when they are imported: not this
        import transformers  # noqa: F401

        from benchmarks import transforms

        module = ModuleType("torchvision")
        module.transforms = transforms  # pyright: ignore[reportAttributeAccessIssue]
        sys.modules |= {"torchvision": module, "torchvision.transforms": transforms}
    sys.argv = [script, *words]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
