"""Every family at true size with random weights: does it train, how fast, in how much memory?

The denoiser, the VAE and the width of the text encoders are those of the published models; text encoders keep
two layers, because their answers are cached before the first step. Weights are drawn at random on the device,
so nothing is downloaded: losses say nothing but that they are finite. Everything else is the real thing: the
shipped recipe, caches, optimizer, checkpoint.

    python -m benchmarks.true_size [--cases sd15 sdxl sd35:medium ...] [--steps 10] [--set train.batch_size=2]
    python -m benchmarks.true_size --toy        # the same at toy size, where there is no GPU
"""

import argparse
import gc
import json
import shutil
import statistics
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from tests.support.bases import save_base
from tests.support.runs import draw_pictures, write_run
from trainers import setup
from trainers.families import FAMILIES
from trainers.families.base import Family
from trainers.metrics import Reporter
from trainers.recipe import apply_sets, preset
from trainers.run import run as train_run
from trainers.rundir import RunDir
from trainers.signals import StopFlag

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "studio" / "configs"
CASES = ("sd15", "sd21", "sdxl", "sd35:medium", "sd35:large", "flux1:dev")
TEXT_LAYERS = 2
FEW = {"num_hidden_layers": TEXT_LAYERS, "num_layers": TEXT_LAYERS}


def random_weights(cls: type[Family], configs: Path) -> type[Family]:
    """`cls`, whose models are made from their configs with random weights instead of being read."""

    class RandomWeights(cls):
        def _load(self, name: str) -> Any:
            part = self.parts[name].load_class()
            if not issubclass(part, torch.nn.Module):
                return super()._load(name)
            config = json.loads((configs / name / "config.json").read_text())
            dtype = torch.float32 if name == "vae" else self.dtype
            before = torch.get_default_dtype()
            torch.set_default_dtype(dtype)
            torch.manual_seed(0)
            try:
                with torch.device(self.device):
                    model = make(part, config, text=name.startswith("text_encoder"))
            finally:
                torch.set_default_dtype(before)
            return model.to(dtype).requires_grad_(False).eval()

        def component_hash(self, name: str, memo: Any = None) -> str:
            del memo  # there are no files to hash
            return f"random {configs} {name}"

    return RandomWeights


def make(part: Any, config: dict[str, Any], *, text: bool) -> torch.nn.Module:
    """A model of transformers or diffusers from its config."""
    if not text:
        return part.from_config(config)
    values = {key: FEW.get(key, value) for key, value in config.items()}
    return part(part.config_class.from_dict(values))


def base_folder(family: str, variant: str, folder: Path) -> Path:
    """Configs of the published model, tokenizers of the toy: a base without weights."""
    toy = save_base(family, folder / "toy")
    place = shutil.copytree(CONFIGS / family, folder / "base", ignore=shutil.ignore_patterns("variants"))
    if variant:
        shutil.copytree(CONFIGS / family / "variants" / variant, place, dirs_exist_ok=True)
    for tokenizer in FAMILIES[family].tokenizers:
        shutil.copytree(toy / tokenizer, place / tokenizer, dirs_exist_ok=True)
    return place


def measure(case: str, steps: int, sets: list[str], *, toy: bool) -> dict[str, Any]:
    """Train one case for `steps` steps; its figures."""
    family, _, variant = case.partition(":")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = save_base(family, folder / "base") if toy else base_folder(family, variant, folder)
        side = 32 if toy else FAMILIES[family].resolution
        pictures = draw_pictures(folder / "pictures", 4, side)
        rundir = write_run(folder / "run", base, pictures, family=family)
        small = ["train.resolution=32", "data.bucket_step=16"] if toy else []
        usual = [
            f"train.max_steps={steps}", f"checkpoints.every={steps}", "preview.every=0",
            "checkpoints.keep_best=false", "log.tensorboard=false",
        ]  # fmt: skip
        recipe = apply_sets(preset(family, "style"), [*usual, *small, *sets])
        rundir.file("recipe.json").write_text(recipe.model_dump_json())
        cls = FAMILIES[family].load_class() if toy else random_weights(FAMILIES[family].load_class(), base)
        return {"case": case, **train(rundir, cls), "recipe": sets}


def train(rundir: RunDir, cls: type[Family]) -> dict[str, Any]:
    """Run the real trainer in this process with the given family class."""
    cuda = torch.cuda.is_available()
    real = setup.FAMILIES

    class Table(dict):
        def __getitem__(self, key: str) -> Any:
            return _Row(cls)

    setup.FAMILIES = Table(real)  # type: ignore[assignment]
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    reporter, started = Reporter(rundir, writes=True), time.perf_counter()
    reporter.start()
    try:
        train_run(reporter, StopFlag(grace=0.3))
    finally:
        setup.FAMILIES = real
        if not reporter._ended.is_set():
            reporter.end("failed")
    whole = time.perf_counter() - started
    lines = rundir.read_metrics()
    losses = [line["loss"] for line in lines]
    late = [line["seconds"] for line in lines[len(lines) // 2 :]]
    return {
        "finite": all(loss == loss and abs(loss) != float("inf") for loss in losses),
        "loss": round(losses[-1], 4),
        "ms_per_step": round(1000 * statistics.median(late), 1),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else None,
        "seconds_in_all": round(whole, 1),
    }


class _Row:
    """Of the table of families: one class, whatever is asked for."""

    def __init__(self, cls: type[Family]) -> None:
        self._cls = cls

    def load_class(self) -> type[Family]:
        return self._cls


def main() -> int:
    """Measure and print one line of JSON a case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=list(CASES))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--set", dest="sets", action="append", default=[])
    parser.add_argument("--toy", action="store_true")
    options = parser.parse_args()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(json.dumps({"device": device, "torch": torch.__version__, "toy": options.toy}), flush=True)
    failed = 0
    for case in options.cases:
        try:
            print(json.dumps(measure(case, options.steps, options.sets, toy=options.toy)), flush=True)
        except Exception as error:  # noqa: BLE001 - one case that fails must not end the others
            failed += 1
            traceback.print_exc()
            said = f"{type(error).__name__}: {str(error)[:300]}"
            print(json.dumps({"case": case, "error": said}), flush=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
