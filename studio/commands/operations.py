"""`studio adapters merge`, `resize`, `extract`, `bake`, `edit` and `xray`."""

from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio.blas import one_thread
from studio.commands.shared import (
    PlaceOption,
    adapter_and_weights,
    invocation,
    note,
    open_workspace,
    plain,
    show_done,
    show_rows,
    write_json,
    write_line,
)

if TYPE_CHECKING:
    from registry.formats.operations.ranks import RankRule
    from studio.operations import Made, Use
    from studio.workspace import Workspace

Name = Annotated[str, typer.Option(help="Name of the new adapter.")]
Rank = Annotated[int, typer.Option(help="Rank of every module, or the most that a dynamic rule may choose.")]
Ratio = Annotated[float, typer.Option(help="Keep singular values above the largest / this number.")]
Fro = Annotated[float, typer.Option(help="Keep this share of the Frobenius norm, as 0.9.")]
Cumulative = Annotated[float, typer.Option(help="Keep this share of the sum of singular values, as 0.9.")]
Dtype = Annotated[str, typer.Option(help="fp32, bf16 or fp16; default: as the adapters are stored.")]
NeededBase = Annotated[str, typer.Option(help="Base; DoRA and OFT need it. Default: the adapters' own.")]
Uses = Annotated[list[str], typer.Argument(help="NAME[:WEIGHT[:TEXT_WEIGHT]][BLOCKS]; see docs/catalog.md.")]


def merge(
    adapters: Uses,
    name: Name,
    method: Annotated[str, typer.Option(help="concat (exact), svd, ties or dare.")] = "",
    rank: Rank = 0,
    sv_ratio: Ratio = 0.0,
    sv_fro: Fro = 0.0,
    sv_cumulative: Cumulative = 0.0,
    density: Annotated[float, typer.Option(help="Share of entries that ties and dare keep.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of dare.")] = 0,
    dtype: Dtype = "",
    base: NeededBase = "",
) -> None:
    """Merge adapters into a new one: exactly (ranks added up), or at a rank by SVD.

    Example: studio adapters merge ink:0.8 "oil:0.5[IN04-08=0]" --rank 16 --name ink-oil
    """
    one_thread()
    from registry.formats.operations.merge import MergeSettings
    from studio.operations import merge as merge_adapters

    rule = _rule(rank, sv_ratio, sv_fro, sv_cumulative)
    chosen = method or ("svd" if rule.rank or rule.dynamic else "concat")
    workspace = open_workspace()
    _show_made(
        merge_adapters(
            workspace, [_use(workspace, text) for text in adapters], name=name, dtype=dtype, base=base,
            settings=MergeSettings(chosen, rule, density, seed), progress=_told("modules"),
        )
    )  # fmt: skip


def resize(
    adapter: str,
    name: Name,
    rank: Rank = 0,
    sv_ratio: Ratio = 0.0,
    sv_fro: Fro = 0.0,
    sv_cumulative: Cumulative = 0.0,
    alpha: Annotated[str, typer.Option(help="rank (alpha = rank) or scale (alpha / rank stays).")] = "rank",
    dtype: Dtype = "",
    base: NeededBase = "",
) -> None:
    """Give an adapter another rank, the same for all modules or as many as each needs.

    Example: studio adapters resize ink --sv-fro 0.95 --rank 32 --name ink-small
    """
    one_thread()
    from studio.operations import resize as resize_adapter

    rule = _rule(rank, sv_ratio, sv_fro, sv_cumulative)
    workspace = open_workspace()
    _show_made(
        resize_adapter(
            workspace,
            adapter,
            rule,
            name=name,
            alpha=alpha,
            dtype=dtype,
            base=base,
            progress=_told("modules"),
        )
    )


def extract(
    base: Annotated[str, typer.Option(help="The base that it was trained from.")],
    tuned: Annotated[str, typer.Option(help="Fine-tuned model: a base's name, a folder or a .safetensors.")],
    name: Name,
    rank: Rank = 0,
    sv_ratio: Ratio = 0.0,
    sv_fro: Fro = 0.0,
    sv_cumulative: Cumulative = 0.0,
    component: Annotated[
        list[str] | None, typer.Option(help="Only this component, as unet; repeatable.")
    ] = None,
    conv: Annotated[bool, typer.Option("--conv/--no-conv", help="Also convolutions of 3 x 3.")] = True,
    dtype: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp16",
) -> None:
    """Make an adapter of what a fine-tuned model has that its base has not.

    Example: studio adapters extract --base sd15 --tuned my-model.safetensors --rank 32 --name my-style
    """
    from studio.operations import extract as extract_adapter

    rule = _rule(rank, sv_ratio, sv_fro, sv_cumulative)
    _show_made(
        extract_adapter(
            open_workspace(), base, tuned, rule, name=name, components=component or (), convolutions=conv,
            dtype=dtype, progress=_told("modules"),
        )
    )  # fmt: skip


def bake(
    adapters: Uses,
    base: Annotated[str, typer.Option(help="Base whose weights the adapters go into.")],
    out: Annotated[Path, PlaceOption(help="Folder, or a file that ends in .safetensors.")],
    dtype: Annotated[str, typer.Option(help="fp32, bf16 or fp16; default: as the base is stored.")] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing model.")] = False,
    add: Annotated[str, typer.Option(help="Also add it to the bases under this name.")] = "",
) -> None:
    """Put adapters into the weights of a base: a new diffusers folder or single file.

    Example: studio adapters bake ink:0.8 --base pocket --out pocket-ink --add pocket-ink
    """
    from studio.operations import bake as bake_adapters

    workspace = open_workspace()
    uses = [_use(workspace, text) for text in adapters]
    baked = bake_adapters(
        workspace, base, uses, out, dtype=dtype, overwrite=overwrite, add=add, progress=_told("bytes")
    )
    report = baked.report
    lines = [f"Wrote {report.path}: {report.modules} layers changed, {report.bytes / 2**20:.0f} MiB."]
    lines += [f"Note: {text}." for text in report.notes]
    if baked.base:
        lines.append(f"Added as base {baked.base.name}.")
    show_done("\n".join(lines), plain(baked.to_dict()))


def edit(
    adapter: str,
    set: Annotated[list[str] | None, typer.Option(help="KEY=VALUE of the metadata; repeatable.")] = None,
    remove: Annotated[
        list[str] | None, typer.Option(help="Key of the metadata to take away; repeatable.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Title.")] = None,
    trigger: Annotated[list[str] | None, typer.Option(help="Trigger word; repeatable; '' = none.")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence.")] = None,
    description: Annotated[str | None, typer.Option(help="Description.")] = None,
    author: Annotated[str | None, typer.Option(help="Author.")] = None,
    thumbnail: Annotated[Path | None, typer.Option(help="Picture to put into the file.")] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Also when the file lies outside the workspace.")
    ] = False,
) -> None:
    """Change what an adapter's file says of itself; its weights stay as they are, to the bit.

    Example: studio adapters edit ink --title "Ink drawings" --trigger inkstyle --set ss_comment=first
    """
    from registry.errors import BadInput
    from registry.formats.operations.edit import Edit
    from studio.operations import edit as edit_adapter

    values: dict[str, str] = {}
    for text in set or []:
        key, equals, value = text.partition("=")
        if not equals:
            raise BadInput(f"--set {text!r}", "is not KEY=VALUE", "write for example --set ss_comment=first")
        values[key] = value
    words = None if trigger is None else [word for word in trigger if word.strip()]
    changes = Edit(
        title=title, trigger_words=words, licence=licence, description=description, author=author,
        thumbnail=thumbnail, values=values, remove=tuple(remove or ()),
    )  # fmt: skip
    record = edit_adapter(open_workspace(), adapter, changes, in_place=in_place)
    show_done(f"{record.name}: metadata written, weights unchanged.", plain(record))


def xray(
    adapters: Annotated[list[str], typer.Argument(help="One adapter, or several to compare.")],
    base: NeededBase = "",
) -> None:
    """Show what adapters change, block by block, and how alike they are.

    Example: studio adapters xray ink oil
    """
    one_thread()
    from studio.operations import xray as xray_adapters

    found = xray_adapters(open_workspace(), adapters, base=base)
    if invocation.json:
        write_json(found)
        return
    for item in found["adapters"]:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in item["components"].items())
        write_line(f"{item['name']}: |change| {item['norm']:.4g}, {len(item['modules'])} modules; {shares}")
        show_rows(item["blocks"], _BLOCK_COLUMNS, empty="It has no modules.")
        for text in item["warnings"]:
            write_line(f"Note: {text}.")
    if found["similarity"]:
        show_rows(found["similarity"], _PAIR_COLUMNS, empty="")


_BLOCK_COLUMNS: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ("block", lambda r: r["block"]),
    ("", lambda r: "#" * round(30 * r["share"]) or "."),
    ("share", lambda r: f"{r['share']:.1%}"),
    ("norm", lambda r: f"{r['norm']:.3g}"),
    ("largest", lambda r: f"{r['spectral']:.3g}"),
    ("effective rank", lambda r: f"{r['effective']:.1f}"),
    ("modules", lambda r: r["modules"]),
    ("dead", lambda r: r["dead"] or ""),
]
_PAIR_COLUMNS: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ("adapter", lambda r: r["a"]),
    ("and", lambda r: r["b"]),
    ("similarity", lambda r: f"{r['overall']:+.3f}"),
    ("shared modules", lambda r: r["shared"]),
    ("most alike in", lambda r: max(r["blocks"], key=r["blocks"].get, default="")),
]


def _use(workspace: "Workspace", text: str) -> "Use":
    """NAME[:WEIGHT[:TEXT_WEIGHT]][BLOCKS] -> Use; a name may itself contain brackets."""
    from registry.formats.operations.strength import split_blocks
    from registry.records import Adapter
    from studio.operations import Use

    head, blocks = split_blocks(text)
    if workspace.catalog.find(Adapter, text) is not None:
        head, blocks = text, ""
    record, numbers = adapter_and_weights(workspace, head)
    return Use(record.id, **dict(zip(("weight", "text"), numbers, strict=False)), blocks=blocks)


def _rule(rank: int, sv_ratio: float, sv_fro: float, sv_cumulative: float) -> "RankRule":
    from registry.formats.operations.ranks import RankRule

    return RankRule(rank, sv_ratio, sv_fro, sv_cumulative)


def _show_made(made: "Made") -> None:
    report, adapter = made.report, made.adapter
    ranks = (
        ", ".join(map(str, report.ranks))
        if len(report.ranks) < 6
        else f"{min(report.ranks)} to {max(report.ranks)}"
    )
    lines = [f"Made {adapter.name} ({adapter.id}): {len(report.modules)} modules, rank {ranks or 'none'}."]
    if report.total_error:
        worst = report.worst
        lines.append(
            f"Error {report.total_error:.2%} of the change; worst {worst.error:.2%} in {worst.module}."
        )
    lines += [f"Note: {text}." for text in report.notes]
    show_done("\n".join(lines), plain(made.to_dict()))


def _told(what: str) -> Callable[[int, int], None] | None:
    """Says every few seconds how far it is; nothing in JSON."""
    if invocation.json:
        return None
    last = monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal last
        if monotonic() - last >= 5:
            last = monotonic()
            note(f"{100 * done // max(total, 1)} % ({done} of {total} {what})")

    return tell


COMMANDS = (merge, resize, extract, bake, edit, xray)  # of `studio adapters`
