"""Every way in which a trainer can be gone gets the right name."""

from pathlib import Path

import pytest

from registry.records import RunState
from studio.runs.outcome import ATTEMPT, judge, log_tail
from trainers.rundir import RunDir, Status

FAILED, INTERRUPTED = RunState.FAILED, RunState.INTERRUPTED
CUDA = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
CPU = "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"


@pytest.mark.parametrize(
    ("exit_code", "log", "memory_killed", "started", "state", "kind", "word"),
    [
        (1, CUDA, False, True, FAILED, "oom", "train.batch_size"),
        (1, CPU, False, True, FAILED, "oom", "train.batch_size"),
        (1, "MemoryError", False, False, FAILED, "oom", "train.batch_size"),
        (None, CUDA, False, True, FAILED, "oom", "train.batch_size"),  # adopted
        (137, "", False, True, FAILED, "oom", "system killed"),
        (-9, "", True, True, FAILED, "oom", "system killed"),
        (-9, "", False, True, INTERRUPTED, "killed", "signal 9"),
        (
            -9,
            CUDA,
            False,
            True,
            INTERRUPTED,
            "killed",
            "signal 9",
        ),  # it had recovered: the end came from outside
        (-9, "", False, False, INTERRUPTED, "killed", "signal 9"),
        (-15, "", False, True, INTERRUPTED, "killed", "signal 15"),
        (-11, "", False, True, INTERRUPTED, "killed", "signal 11"),
        (None, "", False, True, INTERRUPTED, "killed", "is gone"),
        (2, "", False, False, FAILED, "input", "refused its input"),
        (3, "", False, True, FAILED, "nan", "optimizer.lr"),
        (4, "", False, True, FAILED, "oom", "train.resolution"),
        (5, "", False, True, FAILED, "disk", "free some space"),
        (1, "OSError: No space left on device", False, True, FAILED, "disk", "free some space"),
        (1, "first\nImportError: libfoo", False, False, FAILED, "error", "ImportError: libfoo"),
        (-11, "", False, False, FAILED, "error", "before its first step"),
    ],
)
def test_without_a_last_word(
    exit_code: int | None,
    log: str,
    memory_killed: bool,
    started: bool,
    state: RunState,
    kind: str,
    word: str,
):
    status = Status(state="running", phase="training", step=3) if started else None
    log = f"{ATTEMPT}2026 ---\n{log}"
    outcome = judge(status, exit_code, log=log, memory_killed=memory_killed, started=started)
    assert (outcome.state, outcome.kind) == (state, kind)
    assert word in outcome.reason
    assert outcome.retry == (state is FAILED and kind == "error")


def test_the_last_word_of_the_trainer_counts_most():
    nan = Status(state="failed", kind="nan", reason="step 7: the loss is not finite.")
    assert judge(nan, 3, log=CUDA, memory_killed=True, started=True).reason == nan.reason
    oom = Status(state="failed", kind="oom", reason="the GPU is out of memory.")
    assert "gradient_checkpointing" in judge(oom, 4, log="", memory_killed=False, started=True).reason
    done = Status(state="finished")
    assert judge(done, -9, log="", memory_killed=False, started=True).state is RunState.FINISHED
    stopped = Status(state="stopped")
    assert judge(stopped, 0, log="", memory_killed=False, started=True).state is RunState.STOPPED


def test_a_run_of_which_a_process_is_gone_is_interrupted_unless_the_log_says_more():
    lost = Status(state="failed", kind="killed", reason="another process of the run is gone", step=5)
    ended = judge(lost, 1, log="", memory_killed=False, started=True)
    assert (ended.state, ended.reason) == (RunState.INTERRUPTED, lost.reason)
    assert judge(lost, 1, log=CUDA, memory_killed=False, started=True).kind == "oom"
    assert judge(lost, 1, log="", memory_killed=True, started=True).kind == "oom"


def test_what_an_earlier_attempt_said_is_not_held_against_this_one(tmp_path: Path):
    (tmp_path / "log.txt").write_text(f"{ATTEMPT}1 ---\n{CUDA}\n{ATTEMPT}2 ---\nloading\n")
    tail = log_tail(RunDir(tmp_path))
    assert "OutOfMemory" not in tail
    assert "loading" in tail
    assert log_tail(RunDir(tmp_path / "nowhere")) == ""
