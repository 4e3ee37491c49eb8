"""The machine doctor, on this machine and on broken ones."""

import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from studio import doctor
from studio.doctor import Check, machine_report, torch_report
from studio.workspace import Workspace

Usage = namedtuple("Usage", "total used free")


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    checks = machine_report(Workspace.open(tmp_path / "home"))
    found = by_name(checks)
    assert {check.name for check in checks if check.status == "bad"} == set()
    assert found["torch"].value.startswith(("2.", "3."))
    assert any(name.startswith("8-bit optimizer") for name in found)
    assert "GPU" in found or "GPU 0" in found
    assert found["HF_TOKEN"].value == "set"
    assert found["WANDB_API_KEY"].value.startswith("not set")
    assert "hf_secret" not in repr(checks)
    assert not list((tmp_path / "home").glob(".doctor*"))


def test_the_caller_stays_without_torch(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from studio.workspace import Workspace\n"
        "from studio import doctor\n"
        "doctor.torch_report = list\n"  # its child may load what it likes, and takes 8 CPU s for it
        "import studio.bases, studio.datasets.ingest, studio.datasets.doctor\n"
        f"doctor.machine_report(Workspace.open(Path({str(tmp_path)!r})))\n"
        "sys.exit(any(m in sys.modules for m in ('torch', 'diffusers', 'datasets')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os.abort()", "cannot be used (exit code -6)"),
        ("import sys; sys.exit('libcuda.so: wrong version')", "libcuda.so: wrong version"),
        ("import time; time.sleep(60)", "no answer within 1 s"),
        ("print('chatter')", "cannot be used"),
    ],
)
def test_a_child_that_fails_is_one_bad_finding(code: str, said: str):
    (check,) = torch_report([sys.executable, "-c", code], seconds=1)
    assert check.status == "bad"
    assert said in check.value
    assert check.fix


def test_chatter_before_the_answer_does_no_harm():
    code = 'print("Welcome to bitsandbytes"); print(\'[{"name": "torch", "status": "ok", "value": "2"}]\')'
    assert torch_report([sys.executable, "-c", code]) == [Check("torch", "ok", "2")]


def test_wrong_and_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch):
    wanted = ["numpy<1", "not-a-package-at-all>=2", 'pytest<1; extra == "dev"', "pillow>=1"]
    monkeypatch.setattr(doctor, "requires", lambda _name: wanted)
    check = doctor._versions()
    assert check.status == "bad"
    assert "numpy" in check.value
    assert "not-a-package-at-all is missing" in check.value
    assert "pytest" not in check.value
    assert "pillow" not in check.value


def test_little_disk_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _path: Usage(10, 10, 2**30))
    check = doctor._disk(tmp_path)
    assert (check.status, check.value) == ("warn", f"1 GiB free at {tmp_path}")


def test_a_workspace_that_cannot_be_written(tmp_path: Path):
    check = doctor._writable(tmp_path / "gone")
    assert check.status == "bad"
    assert "cannot be written" in check.value


def test_an_old_python(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor.sys, "version_info", (3, 10, 1))
    assert doctor._python().status == "bad"
    assert doctor._python().fix == "install Python 3.11 to 3.13"


def test_a_damaged_catalog(tmp_path: Path):
    ws = Workspace.open(tmp_path / "home")
    (ws.home / "catalog.sqlite").write_bytes(b"SQLite format 3\0" + bytes(5000))
    check = doctor._catalog(ws)
    assert check.status == "bad"
    assert check.value


def test_the_kernel_check_sees_wrong_results(monkeypatch: pytest.MonkeyPatch):
    import torch

    from studio import doctor_torch

    assert "computes correctly" in doctor_torch._kernel(torch, torch.device("cpu"))
    real = torch.Tensor.float
    monkeypatch.setattr(torch.Tensor, "float", lambda self: real(self) * 1.5)
    found = doctor_torch._tried("CPU", lambda: doctor_torch._kernel(torch, torch.device("cpu")), "fix it")
    assert found["status"] == "bad"
    assert "a matrix product is wrong" in found["value"]


def test_the_optimizer_check_sees_a_step_that_does_nothing(monkeypatch: pytest.MonkeyPatch):
    import bitsandbytes
    import torch

    from studio import doctor_torch

    assert "AdamW8bit step is right" in doctor_torch._optimizer(torch, torch.device("cpu"))
    monkeypatch.setattr(bitsandbytes.optim.AdamW8bit, "step", lambda _self: None)
    cpu = torch.device("cpu")
    found = doctor_torch._tried("8-bit", lambda: doctor_torch._optimizer(torch, cpu), "fix it")
    assert found["status"] == "bad"
    assert "moved the weights by 0.0000" in found["value"]
