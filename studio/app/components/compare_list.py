"""Earlier comparisons as cards."""

from registry.records import Comparison
from studio.app import shell
from studio.app.components.gallery import Card, gallery
from studio.app.routes import picture_url
from studio.app.words import ago, plural

PER_PAGE = 12
SHOWN = 4  # pictures of a card


def comparisons() -> None:
    """Newest first; a click opens one."""
    catalog = shell.workspace().catalog
    total = catalog.count(Comparison)
    place = shell.place(total, PER_PAGE, "compare-page")
    found = catalog.list(Comparison, limit=PER_PAGE, offset=(place - 1) * PER_PAGE)
    if opened := gallery([_card(one) for one in found], key="compare-list", least=210):
        shell.stay(comparison=opened)
    shell.pager(total, PER_PAGE, "compare-page")


def _card(comparison: Comparison) -> Card:
    from studio.compare.grids import cells_of, progress, spec_of

    workspace = shell.workspace()
    spec, cells = spec_of(comparison), cells_of(workspace, comparison)
    found = progress(workspace, comparison, cells)
    drawn = dict.fromkeys(cells[place].sample_id for place in sorted(cells) if cells[place].state == "drawn")
    urls = tuple(picture_url("sample", id, 0) for id in list(drawn)[:SHOWN])
    state = [("being drawn", "accent")] if found.live else []
    state += [(f"{found.failed} failed", "bad")] if found.failed else []
    state += [("not complete", "warn")] if found.missing and not found.live else []
    axes = " × ".join(plural(len(row.values), row.name) for row in spec.varied)
    return Card(
        id=comparison.id,
        title=comparison.name,
        lines=(axes or plural(spec.size, "picture"), ago(comparison.created_at)),
        images=urls if len(urls) == SHOWN else urls[:1],
        badges=tuple(state),
        placeholder="nothing drawn yet",
    )
