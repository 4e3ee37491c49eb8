"""The catalog with very many adapters: how long finding takes, and how much memory.

`python -m benchmarks.catalog --adapters 100000 --json` generates rows (names, tags, trigger words and notes
put together by chance, no files), adds them to a new catalog, and asks it what a person would:

- `search_p95_ms`: search as you type. Words typed letter by letter; each state of the field is a first page
  with the number of its hits.
- `page_p95_ms`: all that a page of the app asks for: rows, number of hits and facets, for words, filters,
  orders, and pages further on.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import psutil

from registry.catalog import Catalog
from registry.records import Adapter, FileState, now

AT_ONCE = 1000  # rows of one transaction
Took = tuple[float, float]  # wall and CPU milliseconds; they differ where other work runs beside

SAID = 10_000  # rows between two lines about the progress
ON_PAGE = 24


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SUBJECTS = _words("""
    watercolor ink charcoal pixel neon oil pastel gouache linocut woodcut anime manga comic photoreal
    film polaroid vintage cyberpunk steampunk gothic baroque rococo minimal brutalist isometric lowpoly
    claymation felt origami papercut mosaic tapestry embroidery graffiti airbrush vaporwave synthwave
    botanical blueprint chalk crayon marker fresco cubist surreal fantasy horror cozy dreamy ethereal
    portrait landscape interior street fashion armor kimono sneakers jewelry robot mecha dragon fox wolf
    owl horse castle forest ocean desert mountain village city spaceship motorcycle teapot cake sushi
""")
PEOPLE = _words("""
    Lena Mira Zibbo Arata Kestrel Ondine Varga Solène Ilka Bram Toma Yuki Rhea Nadir Quill Orla
""")
WORDS = _words("""
    works best between and at strength trained on pictures from my own holiday scans of old postcards do
    not use with other styles lower the weight for faces great simple backgrounds needs guidance second
    try better hands than before soft light hard shadows keep prompt short thin lines flat colours rough
    paper texture grain bleeding edges muted palette warm evening cold morning
""")
TYPED = ("watercolor", "lena", "pixel art", "cyberpunk city", "zibbo fox", "solène", "holiday scans",
         "origami", "steampunk robot", "portrait warm", "v3", "xylophone", "ink dragon",
         "rough paper")  # fmt: skip
FILTERS: tuple[dict[str, Any], ...] = (
    {}, {}, {}, {"family": "sdxl"}, {"tags": ("watercolor",)}, {"min_rating": 4}, {"favourite": True},
    {"family": "sd15", "method": "lora", "origin": "import"}, {"has_preview": True, "max_rank": 16},
    {"min_size": 200 * 2**20}, {"has_licence": True, "family": "flux1"}, {"family": "unidentified"},
)  # fmt: skip
SORTS = ("newest", "newest", "name", "rating", "size", "oldest", "best")


def adapters(count: int, seed: int = 0) -> Iterator[Adapter]:
    """Generated records without files; the same for the same seed."""
    draw = random.Random(seed)
    begin = now() - timedelta(days=700)
    for number in range(count):
        first, second, person = draw.choice(SUBJECTS), draw.choice(SUBJECTS), draw.choice(PEOPLE)
        named = f"{person} {first} {second} v{draw.randint(1, 9)}"
        made = f"{first}-{second} {draw.choice(('style', 'character', 'concept'))} {number}"
        yield Adapter(
            name=draw.choice((named, made)),
            tensor_sha256=f"{number:064x}",
            file_sha256=f"{number + 2**64:064x}",
            path=f"adapters/{number}.safetensors",
            size=draw.randint(2**20, 800 * 2**20),
            family=draw.choice(("sd15", "sd15", "sdxl", "sdxl", "sdxl", "flux1", "sd35", "sd21", "")),
            method=draw.choices(("lora", "lokr", "loha", "dora", "oft"), (80, 8, 4, 6, 2))[0],
            rank=draw.choice((4, 8, 16, 32, 64, 128)),
            alpha=16.0,
            targets=("unet",),
            trigger_words=(f"{first[:4]}{person[:3].lower()}",),
            tags=(first, *draw.sample(SUBJECTS, 2)),
            note=_text(draw, draw.randint(0, 25)),
            keywords=f"{' '.join(draw.sample(SUBJECTS, 8))} {_text(draw, 6)}",
            rating=draw.choice((0, 0, 0, 1, 2, 3, 4, 5)),
            favourite=draw.random() < 0.05,
            licence=draw.choice(("", "", "cc-by-4.0")),
            origin=draw.choices(("import", "run", "merge"), (90, 8, 2))[0],
            file_state=FileState.OK,
            preview=f"adapters/{number}.png" if draw.random() < 0.7 else "",
            metadata={
                "ss_network_module": "networks.lora",
                "ss_tag_frequency": {first: 12},
                "text": "x" * 800,
            },
            created_at=begin + timedelta(minutes=10 * number + draw.randint(0, 9)),
        )


def _text(draw: random.Random, count: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(count))


def fill(catalog: Catalog, count: int, say: Callable[[int], None]) -> float:
    """Add generated adapters; `say` hears how many there are. Returns seconds."""
    started, some = time.perf_counter(), list[Adapter]()
    for number, adapter in enumerate(adapters(count), start=1):
        some.append(adapter)
        if len(some) == AT_ONCE or number == count:
            catalog.add_all(some)
            some.clear()
            if number % SAID == 0 or number == count:
                say(number)
    return time.perf_counter() - started


def search_times(catalog: Catalog) -> list[Took]:
    """Times of each state of a search field in which `TYPED` is typed."""
    return [
        _milliseconds(partial(catalog.search_adapters, text[:length], limit=ON_PAGE))
        for text in TYPED
        for length in range(1, len(text) + 1)
    ]


def page_times(catalog: Catalog, count: int, seed: int = 1) -> list[Took]:
    """Times of each of `count` pages."""
    draw, times, after = random.Random(seed), list[Took](), ""
    wanted: dict[str, Any] = {}
    for _ in range(count):
        if not after or draw.random() < 0.4:  # another search; else the next page of this one
            words = draw.choice((*TYPED, "", "", "", ""))
            wanted = {"query": words, **draw.choice(FILTERS), "sort": draw.choice(SORTS)}
            after = ""
        times.append(_milliseconds(partial(_page, catalog, wanted, after)))
        after = catalog.search_adapters(**wanted, limit=ON_PAGE, after=after).next
    return times


def _page(catalog: Catalog, wanted: dict[str, Any], after: str) -> None:
    catalog.search_adapters(**wanted, limit=ON_PAGE, after=after)
    catalog.adapter_facets(**{name: value for name, value in wanted.items() if name != "sort"})


def _milliseconds(work: Callable[[], object]) -> Took:
    started, cpu = time.perf_counter(), time.process_time()
    work()
    return (time.perf_counter() - started) * 1000, (time.process_time() - cpu) * 1000


def measure(folder: Path, count: int, pages: int, say: Callable[[int], None]) -> dict[str, float]:
    """All figures of a catalog in `folder` with `count` adapters."""
    catalog = Catalog.open(f"sqlite:///{folder / 'catalog.sqlite'}")
    seconds = fill(catalog, count, say)
    catalog.close()
    catalog = Catalog.open(f"sqlite:///{folder / 'catalog.sqlite'}")
    typed, shown = search_times(catalog), page_times(catalog, pages)
    size = (folder / "catalog.sqlite").stat().st_size
    catalog.close()
    return {
        "adapters": count,
        "import_s": round(seconds, 2),
        **_figures("search", typed),
        **_figures("page", shown),
        "rss_mb": round(psutil.Process().memory_info().rss / 2**20, 1),
        "catalog_mb": round(size / 2**20, 1),
    }


def _figures(name: str, took: list[Took]) -> dict[str, float]:
    wall, cpu = ([times[kind] for times in took] for kind in (0, 1))
    return {
        f"{name}_p50_ms": round(median(wall), 2),
        f"{name}_p95_ms": round(quantiles(wall, n=20)[-1], 2),
        f"{name}_max_ms": round(max(wall), 2),
        f"{name}_cpu_p95_ms": round(quantiles(cpu, n=20)[-1], 2),
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.catalog", description=__doc__.splitlines()[0])
    parser.add_argument("--adapters", type=int, default=100_000, help="how many")
    parser.add_argument("--pages", type=int, default=200, help="pages to ask for")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    chosen = parser.parse_args(arguments)
    if chosen.adapters < 1 or chosen.pages < 2:
        parser.error("--adapters must be 1 or more, --pages 2 or more")

    def say(number: int) -> None:
        sys.stderr.write(f"{number:,} of {chosen.adapters:,} adapters added\n")

    with tempfile.TemporaryDirectory(prefix="catalog-benchmark-") as folder:
        found = measure(Path(folder), chosen.adapters, chosen.pages, say)
    print(
        json.dumps(found, indent=2) if chosen.json else "\n".join(f"{k:16} {v:g}" for k, v in found.items())
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
