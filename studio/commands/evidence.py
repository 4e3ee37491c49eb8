"""`studio evaluate`: which checkpoint and strength is best, why, and whether it copies its pictures."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio.commands.shared import PlaceOption, invocation, note, open_workspace, show_done

if TYPE_CHECKING:
    from studio.evidence.plan import Wishes


def evaluate(
    about: Annotated[str, typer.Argument(help="A run, whose checkpoints are judged, or an adapter.")],
    checkpoints: Annotated[str, typer.Option(help="Steps of a run: 100,200. Default: all, 12 at most.")] = "",
    weights: Annotated[str, typer.Option(help="Strengths beside 0. Default: 0.5,0.75,1,1.25.")] = "",
    prompt: Annotated[
        list[str] | None, typer.Option(help="Asks for what was trained; default: the run's own; repeatable.")
    ] = None,
    prior: Annotated[
        list[str] | None, typer.Option(help="Does not ask for it, to see what else changed; repeatable.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many pictures of each prompt, 2 to 64.")] = 4,
    dataset: Annotated[str, typer.Option(help="Pictures to be like, of an adapter that was imported.")] = "",
    base: Annotated[str, typer.Option(help="Base to draw with, of an adapter without one.")] = "",
    encoder: Annotated[
        str, typer.Option(help="CLIP, SigLIP or DINO to judge with: a folder or hub id. Default: none.")
    ] = "",
    out: Annotated[Path | None, PlaceOption(help="HTML file to write: all in it, needs no network.")] = None,
    queue: Annotated[bool, typer.Option("--queue", help="Leave it to the worker and return.")] = False,
) -> None:
    """Judge the checkpoints of a run, or an adapter, by what they draw, and write the strength to it.

    Example: studio evaluate ink --out ink.html
    """
    from registry.errors import BadInput
    from studio.evidence import evaluations
    from studio.evidence.outputs import check_out, facts, text, write_page
    from studio.evidence.waiting import wait

    workspace = open_workspace()
    wishes = _wishes(
        checkpoints=checkpoints, weights=weights, prompt=prompt, prior=prior, seeds=seeds, dataset=dataset,
        base=base, encoder=encoder,
    )  # fmt: skip
    if out is not None:
        if queue:
            do = "leave out one of them; without --queue the same command writes it later"
            raise BadInput("--out", "is written when it is measured, and --queue does not wait for that", do)
        check_out(out)
    found = evaluations.about_of(workspace, about)
    asked = evaluations.ask(workspace, found, wishes)
    left = f", about {asked.seconds:.0f} s" if asked.seconds else ""
    note(f"{asked.cells:,} cells, {asked.missing:,} pictures to draw{left}")
    evaluation = evaluations.begin(workspace, asked)
    if queue:
        show_done(f"Evidence of {found.name} is in the queue.", facts(workspace, evaluation))
        return
    evaluation = wait(workspace, evaluation, None if invocation.json else note)
    data: dict[str, Any] = facts(workspace, evaluation)
    said = text(workspace, evaluation)
    if out is not None:
        written = str(write_page(workspace, evaluation, out))
        data["report"], said = written, f"{said}\n{written}"
    show_done(said, data)


def _wishes(
    *,
    checkpoints: str,
    weights: str,
    prompt: list[str] | None,
    prior: list[str] | None,
    seeds: int,
    dataset: str,
    base: str,
    encoder: str,
) -> "Wishes":
    from studio.evidence.plan import Wishes

    steps = () if checkpoints.strip() in ("", "all") else tuple(int(n) for n in _numbers(checkpoints, int))
    return Wishes(
        checkpoints=steps,
        prompts=tuple(prompt or ()),
        priors=tuple(prior or ()),
        seeds=seeds,
        weights=tuple(_numbers(weights, float)),
        dataset=dataset,
        base=base,
        encoder=encoder,
    )


def _numbers(text: str, kind: type[int] | type[float]) -> list[float]:
    from registry.errors import BadInput

    try:
        return [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise BadInput(f"{text[:40]!r}", "is not a list of numbers", "write for example 100,200") from None
