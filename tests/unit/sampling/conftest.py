"""Toy bases for the tests of prompts, and bases that are loaded once for a file of tests."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.support.bases import save_parts
from tests.support.modes import loaded_once
from tests.support.prompts import Find, with_layers
from trainers.families import FAMILIES
from trainers.families.base import BaseFiles
from trainers.families.common import TextToImage


@pytest.fixture(scope="module")
def find(tmp_path_factory: pytest.TempPathFactory) -> Find:
    """A loaded toy base of a family, made once."""
    root, made = tmp_path_factory.mktemp("encoding"), dict[str, Any]()

    def get(family: str) -> TextToImage:
        if family not in made:
            folder = save_parts(with_layers(family), FAMILIES[family].pipeline, root / family)
            cpu = torch.device("cpu")
            made[family] = FAMILIES[family].load_class()(
                BaseFiles(str(folder)), dtype=torch.float32, device=cpu
            )
        return made[family]

    return get


@pytest.fixture(scope="module")
def _loaded_once() -> Iterator[None]:
    """Of `tests.support.modes`; for tests that do not ask how something is loaded."""
    with loaded_once():
        yield
