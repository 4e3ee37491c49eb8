"""Every page, empty and filled, light and dark, wide and narrow: `python -m tests.app.screenshots FOLDER`.

Starts the real server on a workspace of its own and drives the system's Chromium. For people to look at.
"""

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from registry.records import Adapter, Base, Checkpoint, Dataset, FileState, Image, Job, JobKind, Run, RunState
from studio.control_facts import CONTROLNET
from studio.workspace import Workspace
from tests.app.compared import compared, voted
from tests.app.filled import fill
from tests.support.browser import browser
from tests.support.serving import pages_alone
from tests.support.sheets import add_checkpoints, judged_run

WIDTHS = {"wide": (1280, 900), "narrow": (390, 844)}
THEMES = ("light", "dark")
TALL = "document.querySelector('[data-testid=stMainBlockContainer]')?.scrollHeight || 0"
LOADED = """() => {
  const images = (root) => [...root.querySelectorAll("*")].flatMap((element) =>
    element.shadowRoot ? images(element.shadowRoot) : element.matches("img") ? [element] : []);
  return images(document).every((image) => image.complete);
}"""
CLICKS = {  # what is clicked, one after the other, before the picture is taken
    "train-everything": ("Everything",),
    "bases-add": ("Add a base", "More"),
    "settings-cluster": ("Set up",),
    "dataset-captions": ("Write captions",),
    "dataset-mask": ("Mask",),
    "dataset-crops": ("What the model will see",),
    "dataset-rights": ("Trained on it: 1 adapter", "Licence and consent"),
    "run-settings": ("Settings of this run", "Log"),
    "adapters-filter": ("Filter",),
    "sample-start": ("Start from this",),
    "sample-brush": ("Start from this", "Change only a part (inpaint)", "Invert", "Mask as a file"),
    "sample-sides": ("Start from this", "Add to its sides (outpaint)"),
    "sample-larger": ("Start from this", "Enlarge it in tiles (upscale)"),
    "sample-passes": (
        "Second, larger pass (hires fix)",
        "Draw it again, larger",
        "Vary this seed (variation)",
    ),
    "sample-control": ("Steer by a picture (ControlNet)", "A picture that steers"),
    "sample-more": ("More",),
    "sample-settings": ("Settings of a picture",),
    "sample-pick": ("Add an adapter",),
    "sample-mix-file": ("Mix as a file",),
    "sample-nothing-steers": ("Steer by a picture (ControlNet)",),
    "adapters-select": ("Select", "All on this page"),
    "adapters-extract": ("Take an adapter out",),
    "compare-slider": ("Slider",),
    "compare-arena": ("Blind vote",),
    "compare-add": ("Add a row or column",),
    "adapter-facts": ("Name, tags and note", "Licence and consent", "File and fingerprints"),
    "adapter-proofs": ("Exported: 1 file",),
    "adapter-export": ("Export",),
    "adapter-exported": ("Export", "Write and check"),
    "adapter-resize": ("Change it", "Make it smaller"),
    "adapter-merge": ("Change it", "Merge with others"),
    "adapter-merge-parts": ("Change it", "Merge with others", "By part"),
    "adapter-bake": ("Change it", "Put it into a base"),
    "adapter-edit": ("Change it", "Edit what the file says"),
}


def main() -> int:
    """Parse, start, shoot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("docs/screenshots"))
    parser.add_argument("--only", default="", help="pages whose name contains this")
    parser.add_argument("--missing", action="store_true", help="leave out pictures that are there already")
    parser.add_argument("--themes", default=",".join(THEMES))
    parser.add_argument("--widths", default=",".join(WIDTHS))
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, browser() as chromium:
        for state in ("empty", "filled"):
            workspace = Workspace.open(Path(scratch) / state)
            if state == "filled":
                fill(workspace)
            with pages_alone(workspace.home) as address:
                for name, path in pages(workspace, state).items():
                    if chosen.only in name:
                        shoot(chromium, address, path, chosen, name)
    return 0


def pages(workspace: Workspace, state: str) -> dict[str, str]:
    """Name of the picture -> address."""
    names = ("datasets", "train", "runs", "adapters", "sample", "compare", "bases", "settings")
    found = {f"home-{state}": "/"} | {f"{name}-{state}": f"/{name}" for name in names}
    if state == "empty":
        return found | {
            "compare-new": "/compare?new=1",
            "dataset-new": "/datasets?new=1",
            "sample-nothing-steers": "/sample",
            "settings-cluster": "/settings",
        }
    catalog = workspace.catalog
    running = catalog.list(Run, state=RunState.RUNNING)[0]
    failed = catalog.list(Run, state=RunState.FAILED)[0]
    finished = catalog.list(Run, state=RunState.FINISHED)[0]
    catalog.pick(finished.id, 200, "", "you")
    neon = catalog.get(Dataset, "neon signs")
    picture = catalog.list(Image, dataset_id=neon.id, order="position")[0]
    return found | {
        **dict.fromkeys(
            ("dataset-detail", "dataset-captions", "dataset-mask", "dataset-rights", "dataset-crops"),
            f"/datasets?dataset={neon.id}",
        ),
        "run-live": f"/runs?run={running.id}",
        "run-finished": f"/runs?run={finished.id}",
        **dict.fromkeys(("run-failed", "run-settings"), f"/runs?run={failed.id}"),
        "runs-compare": "/runs?compare=1",
        **adapter_views(workspace),
        "train-everything": "/train",
        "bases-add": "/bases",
        "adapters-filter": "/adapters",
        "adapters-select": "/adapters",
        "adapters-add": "/adapters?add=1",
        "adapters-extract": "/adapters?add=1",
        "adapters-picture": f"/adapters?picture={picture.pixel_hash}",
        "adapters-import": f"/adapters?imports={catalog.list(Job, kind=JobKind.IMPORT)[0].id}",
        **sample_views(workspace),
        **compare_views(workspace),
        **evidence_views(workspace),
        **dict.fromkeys(
            ("sample-mix", "sample-mix-file"), f"/sample?adapter={catalog.get(Adapter, 'neon signs').id}"
        ),
    }


def sample_views(workspace: Workspace) -> dict[str, str]:
    """The panels of the form, with a network in the catalog."""
    net = Base(
        name="canny edges", family="sd15", part=CONTROLNET, variant="canny", location="nets/canny",
        kind="folder",
    )  # fmt: skip
    workspace.catalog.add(net)
    alone = ("start", "brush", "sides", "larger", "passes", "control", "more", "settings", "pick")
    return dict.fromkeys((f"sample-{view}" for view in alone), "/sample")


def compare_views(workspace: Workspace) -> dict[str, str]:
    """A comparison that is drawn and voted on, one that is being drawn, and the form."""
    done = compared(workspace)
    voted(workspace, done, "neon signs", 24)
    live = compared(workspace, "ink at work", ("blueprint", "ink wash"), drawn=0.7)
    adapter = workspace.catalog.get(Adapter, "neon signs")
    views = ("grid", "slider", "arena", "add", "large")
    return {
        **dict.fromkeys((f"compare-{view}" for view in views), f"/compare?comparison={done.id}"),
        "compare-live": f"/compare?comparison={live.id}",
        "compare-form": f"/compare?new=1&adapter={adapter.id}",
    }


def evidence_views(workspace: Workspace) -> dict[str, str]:
    """A run whose checkpoints were judged: the sheet, the run, its adapter."""
    catalog = workspace.catalog
    adapter = catalog.get(Adapter, "neon signs")
    run = catalog.get(Run, adapter.run_id)
    add_checkpoints(workspace, run, [one.step for one in catalog.list(Checkpoint, run_id=run.id)])
    made = judged_run(workspace, run, memorised=True)
    return {
        "evidence-sheet": f"/compare?evidence={made.id}",
        "evidence-run": f"/runs?run={run.id}",
        "evidence-adapter": f"/adapters?adapter={adapter.id}",
    }


def adapter_views(workspace: Workspace) -> dict[str, str]:
    """One adapter seen through, its dialogs, one that waits to be read, one whose file is gone."""
    from studio.adapters import export
    from studio.xrays import look

    catalog = workspace.catalog
    whole = catalog.get(Adapter, "zibbo")
    look(workspace, [whole])
    export(workspace, whole.id, "diffusers", workspace.home / "exports" / "zibbo.safetensors", overwrite=True)
    workspace.resolve(catalog.get(Adapter, "paper cut").path).unlink(missing_ok=True)
    unread = catalog.get(Adapter, "old postcard")
    catalog.update(Adapter, unread.id, tensor_sha256="", file_state=FileState.NEW, family="")
    clicked = (view for view in CLICKS if view.startswith("adapter-"))
    views = {
        "adapter-detail": "neon signs", "adapter-seen-through": "zibbo", "adapter-missing": "paper cut",
        "adapter-unread": "old postcard", **dict.fromkeys(clicked, "zibbo"),
    }  # fmt: skip
    return {view: f"/adapters?adapter={catalog.get(Adapter, name).id}" for view, name in views.items()}


def shoot(browser: Browser, address: str, path: str, chosen: argparse.Namespace, name: str) -> None:
    """One page in the chosen themes and widths."""
    chosen.folder.mkdir(parents=True, exist_ok=True)
    for theme in chosen.themes.split(","):
        for width in chosen.widths.split(","):
            wide, high = WIDTHS[width]
            picture = chosen.folder / f"{name}-{theme}-{width}.png"
            if chosen.missing and picture.exists():
                continue
            context = browser.new_context(
                viewport={"width": wide, "height": high}, color_scheme="dark" if theme == "dark" else "light"
            )
            page = context.new_page()
            page.goto(address + path)
            settle(page)
            for label in CLICKS.get(name, ()):
                page.get_by_text(label, exact=True).last.click()
                settle(page)
            if name == "compare-large":
                page.get_by_role("button", name="neon signs · strength 1").first.click()
                settle(page)
            else:
                grow(page, wide, high)
            page.screenshot(path=picture)
            context.close()
            sys.stdout.write(f"{picture.name}\n")


def settle(page: Page) -> None:
    """Wait until the page is drawn and its script rests."""
    page.wait_for_selector("h1", timeout=30_000)
    page.wait_for_function("!document.querySelector('[data-testid=stStatusWidget]')", timeout=30_000)
    page.wait_for_timeout(400)
    page.wait_for_function("!document.body.innerText.includes('Checking:')", timeout=120_000)
    page.wait_for_timeout(1200)


def grow(page: Page, wide: int, high: int) -> None:
    """Make the window as tall as the page: Streamlit scrolls inside, so full_page shows nothing more."""
    for _ in range(3):  # what comes into sight may still load and make the page taller
        tall = int(page.evaluate(TALL))
        page.set_viewport_size({"width": wide, "height": min(max(high, tall + 20), 3200)})
        page.wait_for_timeout(700)
        with contextlib.suppress(PlaywrightTimeout):  # pictures out of sight load when somebody scrolls there
            page.wait_for_function(LOADED, timeout=4_000)
        if int(page.evaluate(TALL)) == tall:
            break


if __name__ == "__main__":
    sys.exit(main())
