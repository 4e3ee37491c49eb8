"""The commands that stand alone: demo, app, worker, doctor, sample."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio.commands.shared import (
    PlaceOption,
    adapter_and_weights,
    invocation,
    note,
    open_workspace,
    plain,
    show_done,
    show_rows,
)
from studio.sampling.control.kinds import kinds_help
from studio.sampling.schedulers import samplers_help

if TYPE_CHECKING:
    from studio.sampling.request import AdapterChoice, SampleRequest
    from studio.workspace import Workspace


def demo(
    out: Annotated[Path, PlaceOption(help="Folder for pictures, adapter and report.")] = Path("demo-output"),
    pictures: Annotated[Path | None, typer.Option(help="Your own pictures instead of ours.")] = None,
) -> None:
    """The main job on the pocket base, start to end: pictures, training, adapter, samples, report.

    Example: studio demo --out demo-output
    """
    from studio.demo.run import run_demo

    result = run_demo(open_workspace(), out, pictures=pictures, progress=None if invocation.json else note)
    show_done(result.to_text(), result.to_dict())


def app(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the web app.")] = 8501,
    listen: Annotated[str, typer.Option(help="Address; others than 127.0.0.1 need a password.")] = "",
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page.")] = True,
) -> None:
    """Start the worker (when none runs) and the web app.

    Example: studio app --port 8501
    """
    from studio.app.server import serve

    serve(open_workspace(), port=port, listen=listen or "127.0.0.1", open_browser=browser)


def worker(
    once: Annotated[bool, typer.Option("--once", help="Stop when the queue is empty.")] = False,
) -> None:
    """Do the queued jobs: train, sample, take adapters in; look at watched folders.

    Example: studio worker --once
    """
    from studio.runs.worker import Worker

    Worker(open_workspace(), say=note).run(once=once)
    show_done("The queue is empty." if once else "Stopped.", {"done": True})


def doctor() -> None:
    """Examine this machine: GPU, versions, disk, database, and what to fix.

    Example: studio doctor
    """
    from studio.doctor import machine_report

    checks = [plain(check) for check in machine_report(open_workspace())]
    show_rows(
        checks,
        [
            ("", lambda r: r["status"]),
            ("what", lambda r: r["name"]),
            ("found", lambda r: r["value"]),
            ("what to do", lambda r: r["fix"]),
        ],
        empty="Nothing was checked.",
    )
    if any(check["status"] == "bad" for check in checks):
        raise typer.Exit(1)


def sample(
    context: typer.Context,
    out: Annotated[Path, PlaceOption(help="Folder for the pictures.")],
    prompt: Annotated[
        str,
        typer.Option(
            help="What to draw: (more:1.2) [less] [from:to:0.5] [a|b] a AND b:0.6 BREAK <lora:name:0.8> "
            "{this|that} __wildcard__; see docs/sampling.md."
        ),
    ] = "",
    like: Annotated[
        Path | None,
        typer.Option("--from", help="Picture whose settings to use; only --seed and --count may differ."),
    ] = None,
    base: Annotated[str, typer.Option(help="Base model.")] = "pocket",
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="NAME[:WEIGHT[:TEXT_WEIGHT]] or RUN@STEP[:WEIGHT...]; repeatable."),
    ] = None,
    mix: Annotated[
        Path | None, typer.Option(help="File with a mix of adapters, to be used beside --adapter.")
    ] = None,
    save_mix: Annotated[
        Path | None, PlaceOption(help="Write the adapters of this call and their strengths into a file.")
    ] = None,
    adapter_blocks: Annotated[
        list[str] | None,
        typer.Option(help="NAME:BLOCK=FACTOR,...: strength by block (MID=0.5,OUT00-05=0); repeatable."),
    ] = None,
    adapter_schedule: Annotated[
        list[str] | None,
        typer.Option(help="NAME:FRACTION=FACTOR,...: strength by step (0=0,0.5=1); repeatable."),
    ] = None,
    partial: Annotated[
        bool,
        typer.Option("--partial", help="Draw although a part of an adapter has no place in the base."),
    ] = False,
    negative: Annotated[str, typer.Option(help="What to avoid, in the same syntax.")] = "",
    steps: Annotated[int, typer.Option(min=1, max=500, help="Inference steps.")] = 25,
    cfg: Annotated[
        float | None, typer.Option(min=0, max=50, help="Guidance scale; default: that of the base's presets.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the first picture.")] = 0,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT; default: the base's own.")] = "",
    scheduler: Annotated[
        str, typer.Option(help=f"Sampler; default: the base's own. {samplers_help()}.")
    ] = "default",
    count: Annotated[int, typer.Option(min=1, max=64, help="How many pictures.")] = 1,
    clip_skip: Annotated[
        int, typer.Option(min=0, max=24, help="Stop CLIP this many layers before its end; 1 = not at all.")
    ] = 0,
    image: Annotated[Path | None, typer.Option(help="Picture to start from.")] = None,
    strength: Annotated[
        float, typer.Option(min=0, max=1, help="How much of the picture may change; 1 = all.")
    ] = 0.75,
    mask: Annotated[Path | None, typer.Option(help="Mask of the picture; white is drawn anew.")] = None,
    mask_blur: Annotated[int, typer.Option(min=0, max=256, help="Soft edge of the mask in pixels.")] = 4,
    mask_content: Annotated[
        str, typer.Option(help="What the mask starts from: original, fill, noise or nothing.")
    ] = "original",
    only_masked: Annotated[
        bool, typer.Option("--only-masked", help="Draw only the part around the mask, at full size.")
    ] = False,
    mask_padding: Annotated[
        int, typer.Option(min=0, max=1024, help="Pixels around the mask with --only-masked.")
    ] = 32,
    keep_unmasked: Annotated[
        bool,
        typer.Option("--keep-unmasked/--redraw-unmasked", help="Pixels outside the mask stay as they are."),
    ] = True,
    outpaint: Annotated[str, typer.Option(help="Pixels to add: LEFT,TOP,RIGHT,BOTTOM.")] = "",
    control: Annotated[
        list[str] | None,
        typer.Option(help=f"Picture that steers: KIND:FILE[:WEIGHT[:START:END]]; kinds: {kinds_help()}."),
    ] = None,
    control_model: Annotated[
        list[str] | None,
        typer.Option(
            help="ControlNet for each --control; default: the only one in the catalog for its kind."
        ),
    ] = None,
    control_maps: Annotated[
        bool, typer.Option("--control-maps", help="The pictures of --control are finished maps.")
    ] = False,
    preprocessor: Annotated[
        str, typer.Option(help="Folder or hub id of the model that reads depth or pose.")
    ] = "",
    control_guess: Annotated[
        bool,
        typer.Option("--control-guess", help="Guess mode: the pictures of --control alone say what to draw."),
    ] = False,
    hires: Annotated[
        str, typer.Option(help="Second pass at a larger size: SCALE[:STRENGTH[:STEPS[:UPSCALER]]].")
    ] = "",
    upscale: Annotated[str, typer.Option(help="Enlarge the picture in tiles: SCALE[:OVERLAP].")] = "",
    refiner: Annotated[str, typer.Option(help="SDXL refiner for the last steps: BASE[:FROM].")] = "",
    variation: Annotated[str, typer.Option(help="Vary the seed's picture: SUBSEED:STRENGTH.")] = "",
    guidance_rescale: Annotated[
        float, typer.Option(min=0, max=1, help="Against burnt colours at high guidance.")
    ] = 0.0,
    true_cfg: Annotated[
        float, typer.Option(min=1, max=20, help="Guidance by the negative prompt for FLUX.1.")
    ] = 1.0,
    memory: Annotated[str, typer.Option(help="auto, fast, slicing, model, group or sequential.")] = "auto",
    precision: Annotated[
        str,
        typer.Option(help="Weights of the base: auto, whole, int8, fp8 or nf4 (rounded, for less memory)."),
    ] = "auto",
    speed: Annotated[
        str,
        typer.Option(help="How the denoiser computes: plain, channels_last or compiled (a minute first)."),
    ] = "plain",
    format: Annotated[str, typer.Option(help="Of the files: png, jpeg or webp.")] = "png",
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of jpeg and webp.")] = 92,
    motion: Annotated[str, typer.Option(help="Motion adapter: an SD1.5 base makes a video.")] = "",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="NAME=NUMBER of a base for video, sound or 3D, see `bases show`; repeatable."
        ),
    ] = None,
) -> None:
    """Make pictures with a base and any number of adapters; with other bases video, sound or 3D.

    Example: studio sample --adapter ink:0.8 --prompt "a red circle, ink drawing" --count 4 --out pictures
    """
    from registry.errors import BadInput
    from registry.files import atomic_write
    from registry.records import Base
    from studio.commands import controls, media, modes
    from studio.sampling.defaults import default_guidance, size_for
    from studio.sampling.media.kinds import kind_name
    from studio.sampling.mixes import mix_text, read_mix_file
    from studio.sampling.request import SampleRequest

    workspace = open_workspace()
    if like is not None:
        request = modes.again(workspace, context, like)
        _draw(workspace, request, out)
        return
    record = workspace.catalog.get(Base, base)
    if kind_name(record, motion):
        _draw(workspace, media.request(workspace, context, record), out)
        return
    if set_:
        raise BadInput(
            f"--set {set_[0][:40]}", f"is not for pictures, which {record.name} makes", "leave it out"
        )
    if "prompt" not in modes.given(context):
        raise typer.BadParameter(
            "is missing: say what to draw, or give --from PICTURE", param_hint="--prompt"
        )
    sides = modes.sides(outpaint)
    start = None if upscale or image is None else Path(modes.absolute(image))
    width, height = modes.size(size) if size else size_for(workspace, record, start, sides)
    adapters = _choices(workspace, adapter or [], adapter_blocks or [], adapter_schedule or [])
    if mix is not None:
        adapters += read_mix_file(workspace, mix, record.family)
    if save_mix is not None:
        atomic_write(save_mix, mix_text(workspace, record, adapters))
    request = modes.validated(
        SampleRequest,
        base=record.id,
        adapters=adapters,
        partial=partial,
        prompt=prompt,
        negative=negative,
        steps=steps,
        cfg=default_guidance(record) if cfg is None else cfg,
        seed=seed,
        width=width,
        height=height,
        scheduler=scheduler,
        count=count,
        clip_skip=clip_skip,
        image=modes.absolute(image),
        strength=strength,
        mask=modes.absolute(mask),
        mask_blur=mask_blur,
        mask_content=mask_content,
        only_masked=only_masked,
        mask_padding=mask_padding,
        keep_unmasked=keep_unmasked,
        outpaint=sides,
        controls=controls.choices(
            workspace,
            control or [],
            control_model or [],
            maps=control_maps,
            preprocessor=preprocessor,
            guess=control_guess,
        ),
        hires=modes.hires(hires),
        upscale=modes.upscale(upscale),
        **modes.refiner(workspace, refiner),
        **modes.variation(variation),
        guidance_rescale=guidance_rescale,
        true_cfg=true_cfg,
        memory=memory,
        precision=precision,
        speed=speed,
        format=format,
        quality=quality,
    )
    _draw(workspace, request, out)


def _draw(workspace: "Workspace", request: "SampleRequest", out: Path) -> None:
    """Queue, wait, copy the pictures out, say where they are."""
    from studio.sampling.submit import collect, folder_for, submit, wait

    with folder_for(out):
        made = submit(workspace, request)
        wait(workspace, made, None if invocation.json else note)
        files = collect(workspace, made, out)
    data = {"id": made.id, "files": [str(file) for file in files], "request": made.request}
    show_done("\n".join(str(file) for file in files), data)


def _choices(
    workspace: "Workspace", adapters: list[str], blocks: list[str], schedules: list[str]
) -> "tuple[AdapterChoice, ...]":
    """The adapters of a request; blocks and schedules name those that they are about."""
    from registry.errors import BadInput
    from studio.commands import modes
    from studio.sampling.chosen import chosen_adapter
    from studio.sampling.request import AdapterChoice
    from studio.sampling.strengths import parse_blocks, parse_schedule

    values: list[dict[str, Any]] = []
    for text in adapters:
        # NAME[:WEIGHT[:TEXT_WEIGHT]]; a name may itself contain colons
        record, numbers = adapter_and_weights(workspace, text)
        values.append({"id": record.id, **dict(zip(("weight", "text_weight"), numbers, strict=False))})
    details: list[tuple[str, str, str, Any]] = [
        *(("--adapter-blocks", text, "blocks", parse_blocks(text)) for text in blocks),
        *(("--adapter-schedule", text, "schedule", parse_schedule(text)) for text in schedules),
    ]
    for option, text, field, (name, value) in details:
        record = chosen_adapter(workspace, name)
        own = next((item for item in values if item["id"] == record.id), None)
        if own is None:
            raise BadInput(f"{option} {text!r}", "names no adapter of this call", f"add --adapter {name}")
        if field in own:
            raise BadInput(f"{option} {text!r}", "is there twice for one adapter", "put both into one")
        own[field] = value
    return tuple(modes.validated(AdapterChoice, **value) for value in values)


COMMANDS = (demo, app, worker, doctor, sample)
