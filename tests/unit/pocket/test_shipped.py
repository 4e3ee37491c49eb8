"""The bases that ship: what they draw, also when a word stands there that they do not know."""

import pytest

from registry.errors import NotFound
from studio.pocket import check
from studio.pocket.checker import fidelity
from studio.pocket.grammar import evaluation_scenes
from studio.workspace import PACKAGED

PROMPTS = 16


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGED)
def test_a_shipped_base_draws_what_it_is_told_whatever_stands_behind_it(name):
    scenes = evaluation_scenes(PROMPTS)
    seen = fidelity(check.draw(check.load(PACKAGED[name]), scenes, stray=True), scenes)
    assert seen.both >= 0.8, check.in_words(seen)
    assert seen.count >= 0.6, check.in_words(seen)


def test_the_check_prints_its_figures_and_draws_the_pictures(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(check, "STEPS", 1)
    assert check.main(["--prompts", "2", "--stray", "--sheet", str(tmp_path / "sheet.png")]) == 0
    assert capsys.readouterr().out.startswith("2 held-out prompts, a made-up word behind each: background ")
    assert (tmp_path / "sheet.png").exists()
    with pytest.raises(NotFound, match="is no diffusers folder"):
        check.main(["--model", str(tmp_path)])
