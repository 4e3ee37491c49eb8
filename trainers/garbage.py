"""When Python looks for garbage in cycles."""

import gc
from collections.abc import Generator
from contextlib import contextmanager

RARELY = (5_000_000, 50, 100)  # thresholds of `gc`


@contextmanager
def seldom_collecting() -> Generator[None]:
    """Hardly look for garbage meanwhile: while libraries are loaded everything stays.

    Loading diffusers and transformers makes 700,000 objects; looking through them again and again costs 1.6 s
    of CPU time (2 cores).
    """
    usual = gc.get_threshold()
    gc.set_threshold(*RARELY)
    try:
        yield
    finally:
        gc.set_threshold(*usual)
