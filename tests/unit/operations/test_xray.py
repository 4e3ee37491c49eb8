"""What the X-ray says against the whole matrices."""

import numpy as np
import pytest

from registry.formats.internal import AdapterForm, LoraFactors
from registry.formats.operations.lowrank import dense_svd
from registry.formats.operations.xray import changes_of, similarity, xray
from tests.support.adapters import TEXT, UNET, make_form


def look(form):
    return xray(form, changes_of(form))


def test_figures_are_those_of_the_whole_matrices():
    form = make_form(seed=2)
    found = look(form)
    energy = 0.0
    for item in found.modules:
        delta = form.delta(item.module)
        s = np.linalg.svd(delta.reshape(len(delta), -1).astype(np.float64), compute_uv=False)
        energy += float((s**2).sum())
        assert item.norm == pytest.approx(np.linalg.norm(delta), rel=1e-5)
        assert item.spectral == pytest.approx(s[0], rel=1e-5)
        share = s[s > 1e-9] / s.sum()
        assert item.effective == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-3)
        assert item.rank95 == int(np.searchsorted(np.cumsum(s**2), 0.95 * (s**2).sum())) + 1
        assert item.rank == form.modules[item.module].rank
    assert found.norm == pytest.approx(np.sqrt(energy), rel=1e-5)
    assert sum(block.share for block in found.blocks) == pytest.approx(1)
    assert sum(found.components.values()) == pytest.approx(1)
    assert sum(block.modules for block in found.blocks) == len(UNET | TEXT)


def test_blocks_come_in_the_order_of_the_data():
    labels = [block.block for block in look(make_form()).blocks]
    assert labels == ["IN00", "IN01", "IN03", "MID", "OUT02", "OUT05", "REST", "TE1.00", "TE1.01", "TE1.11"]


def zeroed(form, *modules):
    return AdapterForm(
        form.family,
        {n: LoraFactors(f.down, f.up * 0, f.alpha) if n in modules else f for n, f in form.modules.items()},
    )


def scaled(form, times, *modules):
    return AdapterForm(
        form.family,
        {
            n: LoraFactors(f.down, f.up * np.float32(times), f.alpha) if n in modules else f
            for n, f in form.modules.items()
        },
    )


def test_warnings_are_in_plain_words():
    form = make_form(UNET, seed=1)
    assert look(form).warnings == ()
    dead = look(zeroed(form, "unet.conv_in"))
    assert dead.warnings[0] == "1 of 13 modules change nothing (dead), the first is unet.conv_in"
    assert look(zeroed(form, *UNET)).warnings == ("it changes nothing: all its weights are zero",)
    mid = [name for name in UNET if "mid_block" in name]
    assert any(
        "of the change is in block MID alone" in line for line in look(scaled(form, 30, *mid)).warnings
    )
    assert any("a very large change" in line for line in look(scaled(form, 1e4, "unet.conv_in")).warnings)
    both = make_form(seed=1)
    assert any("it changes the text encoders, too" in line for line in look(both).warnings)
    assert any("prompts will mean other things" in line for line in look(scaled(both, 100, *TEXT)).warnings)


def test_similarity_is_the_cosine_of_the_changes():
    a, b = make_form(seed=1), make_form(UNET, seed=2)
    both = {
        n: LoraFactors(
            np.concatenate([f.down, b.modules[n].down]), np.concatenate([f.up, b.modules[n].up], 1), 2.0
        )
        for n, f in a.modules.items()
        if n in UNET
    }
    mixed = AdapterForm("sd15", both)
    found = similarity("sd15", changes_of(a), changes_of(mixed))
    flat_a = {n: a.delta(n).ravel().astype(np.float64) for n in a.modules}
    flat_b = {n: mixed.delta(n).ravel().astype(np.float64) for n in both}
    whole = sum(flat_a[n] @ flat_b[n] for n in both)
    sizes = [np.sqrt(sum(v @ v for v in flat.values())) for flat in (flat_a, flat_b)]
    assert found.overall == pytest.approx(whole / (sizes[0] * sizes[1]), rel=1e-4)
    assert found.shared == len(UNET)
    for name, value in found.modules.items():
        one, two = flat_a[name], flat_b[name]
        assert value == pytest.approx(one @ two / np.linalg.norm(one) / np.linalg.norm(two), rel=1e-4)
    assert similarity("sd15", changes_of(a), changes_of(a)).overall == pytest.approx(1)


def test_minus_is_minus_one_and_strangers_are_nothing():
    a = make_form(seed=1)
    minus = AdapterForm("sd15", {n: LoraFactors(f.down, -f.up, f.alpha) for n, f in a.modules.items()})
    assert similarity("sd15", changes_of(a), changes_of(minus)).overall == pytest.approx(-1)
    text = similarity("sd15", changes_of(make_form(UNET)), changes_of(make_form(TEXT)))
    assert (text.overall, text.shared) == (0.0, 0)


def test_a_decomposition_of_zeros_is_zeros():
    found = dense_svd(np.zeros((6, 4), np.float32))
    assert found.error(1) == 0.0
