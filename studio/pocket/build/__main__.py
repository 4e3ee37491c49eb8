"""The command: `python -m studio.pocket.build [BASE ...] [--all] [--minutes N] [--out DIR] [--resume]`."""

import argparse
import sys
from pathlib import Path

from registry.errors import BadInput
from studio.pocket.build.kinds.table import KINDS
from studio.pocket.build.together import BuildPlan, build
from studio.pocket.command import end_with, say


def main(arguments: list[str] | None = None) -> int:
    """Parse, build, print."""
    parser = argparse.ArgumentParser(prog="python -m studio.pocket.build", description=__doc__)
    parser.add_argument("bases", nargs="*", metavar="BASE", help=f"of {', '.join(KINDS)}; default: pocket")
    parser.add_argument("--all", action="store_true", help="all of them")
    parser.add_argument("--minutes", type=float, default=90.0, help="time for everything together")
    parser.add_argument("--out", type=Path, default=Path("pocket-build"), help="folder of the result")
    parser.add_argument("--resume", action="store_true", help="go on from the states in that folder")
    parser.add_argument("--together", action="store_true", help="bases at the same time: for a GPU")
    parser.add_argument("--shipped-autoencoders", action="store_true", help="train no new ones")
    parser.add_argument("--further", action="store_true", help="train the shipped bases further")
    parser.add_argument("--rate", type=float, default=1.0, help="times the usual learning rate")
    parser.add_argument("--processes", type=int, default=1, help="how many draw pictures")
    parser.add_argument("--pictures", type=int, default=0, help="captioned ones; 0 = as fits the minutes")
    parser.add_argument("--pack", type=Path, help="folder for results packed into one file each")
    options = parser.parse_args(arguments)
    names = tuple(KINDS) if options.all else tuple(options.bases) or ("pocket",)
    for name in names:
        if name not in KINDS:
            raise BadInput(name, "is no pocket base", f"choose of {', '.join(KINDS)}")
    for name in ("minutes", "rate"):
        if not getattr(options, name) > 0:
            raise BadInput(f"--{name}", f"is {getattr(options, name)}", "give a number above 0")
    if any(options.out.glob("*.state")) and not options.resume:
        raise BadInput(str(options.out), "holds an earlier build", "add --resume or name another folder")
    plan = BuildPlan(
        bases=names, minutes=options.minutes, pictures=options.pictures, together=options.together,
        processes=options.processes, pack=options.pack, rate=options.rate,
        shipped=options.shipped_autoencoders or options.further, further=options.further,
    )  # fmt: skip
    failed = build(options.out, plan, say, resume=options.resume)
    for name in names:
        sys.stdout.write(f"{name}: {'failed' if name in failed else options.out / name / 'model'}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    end_with(main)
