"""Checkpoints that are written beside the training."""

import threading
from pathlib import Path
from typing import Any, cast

import pytest

from registry.errors import StudioError
from trainers.checkpoints import Snapshot, Store
from trainers.rundir import RunDir
from trainers.saving import Saver


class Slow(Store):
    """Writes when it may; fails at some steps."""

    def __init__(self, fails: int = 0) -> None:
        super().__init__(RunDir(Path()), b"", 2)
        self.may, self.fails = threading.Event(), fails
        self.written: list[int] = []

    def write(self, taken: Snapshot, best: int | None) -> Path:
        assert self.may.wait(10)
        if taken.step == self.fails:
            raise StudioError("disk", "is full")
        self.written.append(taken.step)
        return Path()


def taken(step: int) -> Snapshot:
    return Snapshot(step, {}, {}, {}, {})


def test_the_loop_goes_on_and_the_next_one_waits():
    store, told, order = Slow(), list[str](), list[str]()
    saver = Saver(store)
    saver.save(lambda: taken(1), None, written=lambda: told.append("1"))
    saver.check()
    assert store.written == []
    assert told == []
    threading.Timer(0.05, store.may.set).start()

    def second() -> Snapshot:
        order.extend(told)  # no copy is made before the first one is out of the memory
        return taken(2)

    saver.save(second, None, written=lambda: told.append("2"))
    saver.finish()
    assert store.written == [1, 2]
    assert order == ["1"]
    assert told == ["1", "2"]
    saver.close()


def test_a_write_that_fails_is_said_at_the_next_step_and_once():
    store, told = Slow(fails=1), list[str]()
    saver = Saver(store)
    saver.save(lambda: taken(1), None, written=lambda: told.append("1"))
    store.may.set()
    writing = cast(Any, saver)._writing
    assert writing.exception(10) is not None
    with pytest.raises(StudioError, match="is full"):
        saver.check()
    saver.check()
    assert told == []
    saver.close()


def test_the_end_of_a_run_waits_and_hides_no_other_error(caplog: pytest.LogCaptureFixture):
    store = Slow(fails=2)
    saver = Saver(store)
    threading.Timer(0.05, store.may.set).start()
    saver.save(lambda: taken(1), None, written=lambda: None)
    saver.save(lambda: taken(2), None, written=lambda: None)
    saver.close()
    assert store.written == [1]
    assert "was not written" in caplog.text
