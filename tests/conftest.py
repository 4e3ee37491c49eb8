"""Fixtures shared by all tests.

What they need is imported in them: the process that deals out the tests reads this file too, and runs none.
"""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from trainers.garbage import RARELY

if TYPE_CHECKING:
    from trainers.rundir import ManifestItem

ONE_APP = "tests/e2e/one_app/"


def pytest_addoption(parser):
    parser.addoption("--record-golden", action="store_true", help="record the golden losses anew")
    parser.addoption(
        "--all-points", action="store_true", help="sweeps of faults at every point, not a sample"
    )


def pytest_collection(session: pytest.Session) -> None:
    """Before the test modules come: what defers libraries, and no looking for garbage (7 CPU s of 28)."""
    if session.config.getoption("dist", "no") == "no":
        gc.set_threshold(*RARELY)
        import trainers.families.base  # noqa: F401


def pytest_collection_modifyitems(items):
    """Whole walks first: at the end one of them would keep one process busy and leave the others idle."""
    items.sort(key=lambda item: not {"e2e", "faults"} & set(item.path.parts))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """A file goes to one process, for its fixtures, and so do the files that share an app."""
    from xdist.scheduler import LoadFileScheduling

    class Together(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return ONE_APP if nodeid.startswith(ONE_APP) else super()._split_scope(nodeid)

    return Together(config, log)


def pytest_collection_finish():
    """What test modules imported stays; looking through it for garbage would take half a second each time.

    What is imported after that counts again: look seldom, it took 6 % of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


@pytest.fixture(scope="session", autouse=True)
def _quick_starts(tmp_path_factory) -> Iterator[None]:
    """New catalogs, packaged bases, toy models, trainers and samplers are there at once."""
    from tests.support.forked import fork_starts
    from tests.support.new_workspaces import copy_new_catalogs, hash_packaged_bases_once
    from tests.support.read_once import read_models_once

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STUDIO_STANDBY", "off")  # each would be ready too late, and cost what a trainer costs
        copy_new_catalogs(patch, tmp_path_factory.mktemp("catalog"))
        hash_packaged_bases_once(patch)
        read_models_once(patch)
        fork_starts(patch)
        yield


@pytest.fixture(scope="session")
def tiny_sd15(tmp_path_factory) -> Path:
    """A real SD1.5 pipeline at toy size, as a diffusers folder; do not change it."""
    return _toy("sd15", tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_sd21(tmp_path_factory) -> Path:
    """A real SD2.1 pipeline at toy size (v prediction), as a diffusers folder; do not change it."""
    return _toy("sd21", tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory) -> Path:
    """A real SDXL pipeline at toy size, as a diffusers folder; do not change it."""
    return _toy("sdxl", tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_sd35(tmp_path_factory) -> Path:
    """A real SD3.5 pipeline at toy size, T5 included, as a diffusers folder; do not change it."""
    return _toy("sd35", tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_flux1(tmp_path_factory) -> Path:
    """A real FLUX.1-dev pipeline at toy size, as a diffusers folder; do not change it."""
    return _toy("flux1", tmp_path_factory)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> "list[ManifestItem]":
    """Five captioned pictures of 40x40 px."""
    from tests.support.runs import draw_pictures

    return draw_pictures(tmp_path_factory.mktemp("pictures"))


def _toy(family: str, places: pytest.TempPathFactory) -> Path:
    from tests.support.bases import save_base

    return save_base(family, places.mktemp("bases") / f"tiny-{family}")
