"""`python -m trainers.run DIR`: trains the run in DIR. Its files are the only input and the only output.

Exit codes: 0 finished or stopped, 2 bad input, 3 not finite, 4 out of memory, 5 disk, 1 anything else.
"""

import gc
import logging
import os
import sys
from pathlib import Path
from typing import NoReturn

from registry.errors import StudioError
from trainers.garbage import seldom_collecting
from trainers.metrics import Reporter, process_rank
from trainers.recipe import Recipe, load_frozen
from trainers.rundir import RECIPE, RunDir
from trainers.signals import StopFlag, Stopped
from trainers.spared import spare

log = logging.getLogger("trainers")


def main(arguments: list[str] | None = None) -> int:
    """Train one run directory; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) != 1 or not (Path(arguments[0]) / RECIPE).is_file():
        sys.stderr.write("error: usage: python -m trainers.run DIR, a run directory with recipe.json.\n")
        return 2
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO, stream=sys.stdout, force=True
    )
    for chatty in ("accelerate", "diffusers", "transformers", "PIL", "httpx", "filelock"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    os.environ.setdefault("DIFFUSERS_DISABLE_REMOTE_CODE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    stop = StopFlag(grace=5.0 if several else 0.3)
    stop.install()
    reporter = Reporter(RunDir(Path(arguments[0]).resolve()), writes=process_rank() == 0)
    reporter.start()
    try:
        return run(reporter, stop)
    except Stopped:
        reporter.end("stopped")
        return 0
    except BaseException as error:
        from trainers.guards import classify

        failure = classify(error)
        if not isinstance(error, StudioError):  # its line below says all; where it was raised helps nobody
            log.exception("failed")
        _keep_last_finite(reporter, failure.kind)
        reporter.end("failed", failure.kind, failure.reason)
        sys.stderr.write(f"error: {failure.reason}\n")
        if several and failure.kind in ("oom", "error", "killed"):
            _leave(failure.exit_code)
        return failure.exit_code


def run(reporter: Reporter, stop: StopFlag) -> int:
    """Set up and train; everything heavy is imported here, after the first heartbeat."""
    with seldom_collecting():
        spare_bitsandbytes(load_frozen(reporter.rundir.file(RECIPE)))
        from trainers.guards import is_memory
        from trainers.loop import train
        from trainers.session import open_session

        session = open_session(reporter.rundir, reporter, stop)
        gc.freeze()  # what is there now stays for the whole run: no need ever to look through it
    try:
        train(session)
    except (RuntimeError, MemoryError) as error:
        session.torn = session.accelerator.num_processes > 1
        if is_memory(error):
            session.memory_ran_out()
        raise
    finally:
        session.close()
    done = session.milestones.step == session.max_steps
    reporter.end("finished" if done else "stopped")
    log.info("%s at step %d", "finished" if done else "stopped", session.milestones.step)
    return 0


def _leave(code: int) -> NoReturn:
    """End at once: the libraries' own goodbye would wait for processes that wait for this one.

    The launcher ends those when it sees that one is gone.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def spare_bitsandbytes(recipe: Recipe) -> bool:
    """Do without bitsandbytes unless its optimizer is wanted; returns whether."""
    spared = spares_bitsandbytes(recipe)
    if spared:
        spare("bitsandbytes")
    return spared


def spares_bitsandbytes(recipe: Recipe) -> bool:
    """Whether the recipe's optimizer is another library's, on this machine."""
    import torch

    from trainers.optim import optimizer_kind

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return not optimizer_kind(recipe.optimizer, device).bitsandbytes


def _keep_last_finite(reporter: Reporter, kind: str) -> None:
    """After NaN the newest checkpoint, which is finite, is the result."""
    if kind != "nan" or not reporter.writes:
        return
    from trainers.checkpoints import Store
    from trainers.rundir import ADAPTER, workspace_key

    store = Store(reporter.rundir, workspace_key(), keep=2)
    if (folder := store.latest()) and (folder / ADAPTER).exists():
        store.publish(folder)
        log.info("the result is %s, the last finite checkpoint", folder.name)


if __name__ == "__main__":
    sys.exit(main())
