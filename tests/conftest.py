"""Fixtures shared by all tests."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.bases import save_base
from tests.support.new_workspaces import copy_new_catalogs, hash_packaged_bases_once
from tests.support.runs import draw_pictures
from trainers.rundir import ManifestItem

# How long an example takes on a busy machine proves nothing: 0.3 s were seen for one of 0.5 ms.
settings.register_profile("studio", deadline=None)
settings.load_profile("studio")


def pytest_addoption(parser):
    parser.addoption("--record-golden", action="store_true", help="record the golden losses anew")
    parser.addoption(
        "--all-points", action="store_true", help="sweeps of faults at every point, not a sample"
    )


def pytest_collection_modifyitems(items):
    """Whole walks first: at the end one of them would keep one process busy and leave the others idle."""
    items.sort(key=lambda item: not {"e2e", "faults"} & set(item.path.parts))


def pytest_collection_finish():
    """What test modules imported stays; looking through it for garbage would take half a second each time.

    What is imported after that counts again: look seldom, it took 6 % of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


@pytest.fixture(scope="session", autouse=True)
def _quick_workspaces(tmp_path_factory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        copy_new_catalogs(patch, tmp_path_factory.mktemp("catalog"))
        hash_packaged_bases_once(patch)
        yield


@pytest.fixture(scope="session")
def tiny_sd15(tmp_path_factory) -> Path:
    """A real SD1.5 pipeline at toy size, as a diffusers folder; do not change it."""
    return save_base("sd15", tmp_path_factory.mktemp("bases") / "tiny-sd15")


@pytest.fixture(scope="session")
def tiny_sd21(tmp_path_factory) -> Path:
    """A real SD2.1 pipeline at toy size (v prediction), as a diffusers folder; do not change it."""
    return save_base("sd21", tmp_path_factory.mktemp("bases") / "tiny-sd21")


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory) -> Path:
    """A real SDXL pipeline at toy size, as a diffusers folder; do not change it."""
    return save_base("sdxl", tmp_path_factory.mktemp("bases") / "tiny-sdxl")


@pytest.fixture(scope="session")
def tiny_sd35(tmp_path_factory) -> Path:
    """A real SD3.5 pipeline at toy size, T5 included, as a diffusers folder; do not change it."""
    return save_base("sd35", tmp_path_factory.mktemp("bases") / "tiny-sd35")


@pytest.fixture(scope="session")
def tiny_flux1(tmp_path_factory) -> Path:
    """A real FLUX.1-dev pipeline at toy size, as a diffusers folder; do not change it."""
    return save_base("flux1", tmp_path_factory.mktemp("bases") / "tiny-flux1")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> list[ManifestItem]:
    """Five captioned pictures of 40x40 px."""
    return draw_pictures(tmp_path_factory.mktemp("pictures"))
