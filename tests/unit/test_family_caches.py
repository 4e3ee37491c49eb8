"""Setting up a run of every family: what is in memory when, and that cached pictures meet their captions."""

import pytest
import torch

from tests.support.bases import save_base
from tests.support.runs import environment, write_run
from trainers.families import FAMILIES
from trainers.families.base import BaseFiles, Family
from trainers.metrics import Reporter
from trainers.rundir import RunDir
from trainers.session import Session, open_session
from trainers.signals import StopFlag

CPU = torch.device("cpu")


@pytest.fixture(params=sorted(FAMILIES), scope="module")
def base(request, tmp_path_factory):
    return request.param, save_base(request.param, tmp_path_factory.mktemp(request.param) / "base")


@pytest.fixture
def opened(monkeypatch):
    """Opens a run's session in this process."""
    for name, value in environment().items():
        monkeypatch.setenv(name, value)

    def open_it(rundir: RunDir) -> Session:
        return open_session(rundir, Reporter(rundir), StopFlag())

    return open_it


def changes(name: str, **more: object) -> dict[str, object]:
    length = {"data.text_length": 32} if FAMILIES[name].flow else {}
    return {**length, "data.caption_dropout": 0.3, "data.flip": True, **more}


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_cached_pictures_meet_their_captions_in_any_order(trained, base, opened, pictures, tmp_path):
    """The cache is filled by one run and read by another, whose manifest is the other way round."""
    name, folder = base
    wanted = changes(name, **{"adapter.train_text_encoder": trained})
    first = opened(write_run(tmp_path / "first", folder, pictures, wanted, family=name))
    first.close()
    made = sorted((tmp_path / "cache").rglob("*.safetensors"))
    turned = [pictures[i] for i in (3, 1, 4, 0, 2)]
    second = opened(write_run(tmp_path / "second", folder, turned, wanted, family=name))
    assert sorted((tmp_path / "cache").rglob("*.safetensors")) == made
    captions = {picture.name: picture.caption for picture in pictures}
    fresh = FAMILIES[name].load_class()(
        BaseFiles(str(folder)), dtype=torch.float32, device=CPU, use=second.family.use
    )
    stream, seen = second.batches(), set[str]()
    for _ in range(6):
        batch = next(stream)
        assert all(c in ("", captions[n]) for n, c in zip(batch.names, batch.captions, strict=True))
        expected = fresh.encode_text(batch.captions)
        with torch.no_grad():
            found = fresh.conditioning(batch.cond)
        assert all(torch.allclose(found[key], expected[key], atol=1e-5) for key in expected)
        for row, label in enumerate(batch.names):
            item = next(item for item in second.source.items if item.label == label)
            drawn = [second.source.latents.get(item, flip=flip) for flip in (False, True)]
            distances = [((batch.latents[row] - mean) / std).abs().max() for mean, std in drawn]
            assert min(distances) < 6
        seen |= set(batch.names)
    second.close()
    assert seen == set(captions)


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_text_encoders_and_vae_have_left_when_the_denoiser_comes(
    trained, base, opened, pictures, tmp_path, monkeypatch
):
    name, folder = base
    there: dict[str, set[str]] = {}
    load = Family._load

    def noted(self, part):
        there[part] = {*self._loaded} - set(FAMILIES[name].tokenizers)
        return load(self, part)

    monkeypatch.setattr(Family, "_load", noted)
    wanted = changes(name, **{"adapter.train_text_encoder": trained})
    session = opened(write_run(tmp_path / "run", folder, pictures, wanted, family=name))
    session.close()
    family = session.family
    kept = set(family.clip_encoders) if trained else set()
    assert there[family.denoiser_name] <= kept
    assert there["vae"] <= kept
    assert set(family.text_encoder_names) <= there.keys()
    assert "vae" not in family._loaded
