"""The index of previews keeps what was drawn before the first step."""

import json
from pathlib import Path

from trainers.rundir import PREVIEW_INDEX, RunDir


def test_pictures_of_step_zero_and_of_the_base_are_listed(tmp_path: Path):
    lines = [
        {"step": 0, "prompt": "a", "file": "previews/base-p0.png", "base": True},
        {"step": 0, "prompt": "a", "file": "previews/step-000000-p0.png", "base": False},
        {"step": 50, "prompt": "a", "file": "previews/step-000050-p0.png", "base": False},
    ]
    (tmp_path / "previews").mkdir()
    (tmp_path / PREVIEW_INDEX).write_text("".join(json.dumps(line) + "\n" for line in lines))

    assert RunDir(tmp_path).previews() == lines
