"""What a trainer is started with."""

import sys
from pathlib import Path

import pytest

from registry.files import write_json
from studio.runs import device, executors
from studio.runs.executors import command, environment
from studio.workspace import Workspace
from tests.support.supervision import make_run
from trainers.rundir import KEY_VARIABLE


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "home")


def test_the_command_is_a_list_with_the_run_directory_last(monkeypatch: pytest.MonkeyPatch):
    folder = Path("/tmp/a b; rm -rf $HOME")
    assert command(folder, 1) == [sys.executable, "-m", "trainers.run", str(folder)]
    monkeypatch.setattr(executors, "has_gpu", lambda: True)
    several = command(folder, 2)
    assert several[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    assert several[-3:] == ["--module", "trainers.run", str(folder)]
    assert executors._ranks(several) == 2
    monkeypatch.setattr(executors, "has_gpu", lambda: False)
    ranks = command(folder, 3)
    assert ranks[2:6] == ["torch.distributed.run", "--standalone", "--nproc_per_node", "3"]
    assert executors._ranks(ranks) == 3


def test_several_processes_are_started_by_a_configuration_that_accelerate_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from accelerate.commands import launch

    monkeypatch.setattr(executors, "has_gpu", lambda: True)
    write_json(tmp_path / executors.ACCELERATE, executors.configuration(3))
    words = command(tmp_path, 3)[3:]
    arguments, defaults, _ = launch._validate_launch_command(launch.launch_command_parser().parse_args(words))
    assert defaults is not None
    assert (arguments.multi_gpu, arguments.num_processes, arguments.num_machines) == (True, 3, 1)
    assert (arguments.main_process_port, arguments.mixed_precision) == (0, "no")
    assert not any((arguments.use_fsdp, arguments.use_deepspeed, arguments.use_cpu))
    assert arguments.training_script_args == [str(tmp_path)]


def test_the_environment_of_one_process_is_what_accelerate_prepares(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
):
    from accelerate.commands.launch import launch_command_parser
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env

    arguments = launch_command_parser().parse_args(
        ["--cpu", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no",
         "--num_cpu_threads_per_process=3", "x"]
    )  # fmt: skip
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr(executors, "has_gpu", lambda: False)
    _, theirs = prepare_simple_launcher_cmd_env(arguments)
    ours = environment(ws.run_dir(make_run(ws).id), 1, "00")
    prepared = {key for key in theirs if key.startswith("ACCELERATE") or key == "OMP_NUM_THREADS"}
    assert len(prepared) >= 7
    assert {key: ours[key] for key in prepared} == {key: theirs[key] for key in prepared}


def test_the_key_is_in_the_environment_only_and_the_network_is_barred(ws: Workspace):
    from dataclasses import replace

    rundir = ws.run_dir(make_run(ws).id)
    key = ws.key.hex()
    variables = environment(rundir, 1, key)
    assert variables[KEY_VARIABLE] == key
    assert variables["HF_HUB_OFFLINE"] == variables["DIFFUSERS_DISABLE_REMOTE_CODE"] == "1"
    assert not any(key in word for word in command(rundir.path, 1))
    assert not any(key in file.read_text() for file in rundir.path.iterdir() if file.suffix != ".lock")
    rundir.write_env(replace(rundir.read_env(), base_kind="hub"))
    assert "HF_HUB_OFFLINE" not in environment(rundir, 1, key)


def test_the_password_of_the_app_is_nobody_elses(ws: Workspace, monkeypatch: pytest.MonkeyPatch):
    from studio.sampling.client import _environment  # pyright: ignore[reportPrivateUsage]

    monkeypatch.setenv("STUDIO_PASSWORD", "correct horse")
    monkeypatch.setenv("STUDIO_PASSWORD_HASH", "scrypt$correct horse")
    monkeypatch.setenv("WANDB_API_KEY", "theirs")
    trainer = environment(ws.run_dir(make_run(ws).id), 1, ws.key.hex())
    for variables in (trainer, _environment()):
        assert not any("correct horse" in value for value in variables.values())
        assert variables["WANDB_API_KEY"] == "theirs"


def test_threads_share_the_cores_and_sleep_when_idle(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(device, "physical_cores", lambda: 6)
    assert device.thread_environment(4) == {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    assert device.thread_environment()["OMP_NUM_THREADS"] == "6"
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert device.thread_environment()["OMP_NUM_THREADS"] == "2"
