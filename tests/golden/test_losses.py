"""Losses of short runs, recorded: a refactor leaves them as they are. `make golden` records them anew.

Another CPU may round otherwise, so the comparison allows for 0.01 %; one machine repeats them exactly, which
the resume tests check.
"""

import json
from pathlib import Path

import pytest

from tests.support.runs import train, write_run

pytestmark = pytest.mark.golden

RECORD = Path(__file__).parent / "losses.json"
CASES = {
    "sd15": ("sd15", {}),
    "sd21": ("sd21", {}),
    "sd15 conv, text encoder, accumulation": (
        "sd15",
        {
            "adapter.conv_rank": 2,
            "adapter.train_text_encoder": True,
            "train.accumulate": 2,
            "data.flip": True,
            "objective.noise_offset": 0.05,
        },
    ),
    "sd21 objective": (
        "sd21",
        {
            "objective.snr_gamma": None,
            "objective.weighting": "debiased",
            "objective.zero_terminal_snr": "on",
            "objective.loss": "huber",
            "objective.pyramid_discount": 0.4,
            "objective.input_perturbation": 0.1,
            "optimizer.name": "schedulefree",
        },
    ),
    "sd15 prodigy": ("sd15", {"optimizer.name": "prodigy", "optimizer.lr": 1.0}),
    "sdxl": ("sdxl", {}),
    "sdxl text encoders": ("sdxl", {"adapter.train_text_encoder": True, "adapter.conv_rank": 2}),
    "sd35": ("sd35", {}),
    "sd35 clips, mode law, weights": (
        "sd35",
        {
            "adapter.train_text_encoder": True,
            "data.text_length": 32,
            "objective.timestep_law": "mode",
            "objective.flow_weighting": "cosmap",
        },
    ),
    "flux1": ("flux1", {}),
    "flux1 t5, static shift, guidance": (
        "flux1",
        {
            "adapter.train_t5": True,
            "data.text_length": 32,
            "objective.timestep_law": "sigmoid",
            "objective.shift": "static",
            "objective.guidance": 3.5,
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_losses_are_as_recorded(case, request, tmp_path, pictures):
    family, changes = CASES[case]
    base = request.getfixturevalue(f"tiny_{family}")
    rundir = write_run(tmp_path / "run", base, pictures, changes, family=family)
    assert train(rundir) == 0, rundir.file("log.txt").read_text()
    losses = [round(line["loss"], 7) for line in rundir.read_metrics()]
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    if request.config.getoption("--record-golden"):
        RECORD.write_text(json.dumps(record | {case: losses}, indent=1, sort_keys=True) + "\n")
        return
    assert losses == pytest.approx(record[case], rel=1e-4)
    assert len(losses) == 6
