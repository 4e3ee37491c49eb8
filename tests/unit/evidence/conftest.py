"""What the tests of the evidence sheet share."""

import pytest

from studio.evidence.measure import measure
from studio.evidence.tables import Measured
from tests.support.evidence import PROMPTS, SIZE, shots, training


@pytest.fixture(scope="session")
def measured() -> Measured:
    """The three toy subjects."""
    return measure(shots(), PROMPTS, training(), base=None, size=SIZE)
