"""Merging and resizing against the whole matrices, in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.errors import BadInput
from registry.formats.factors import DoraFactors, LohaFactors, LokrFactors, OftFactors, change_of
from registry.formats.internal import AdapterForm, LoraFactors
from registry.formats.operations.lowrank import (
    change_from,
    dense_svd,
    inner,
    singular_values,
    svd,
)
from registry.formats.operations.merge import Ingredient, MergeSettings, merge
from registry.formats.operations.ranks import RankRule
from registry.formats.operations.resize import resize
from registry.formats.operations.strength import make_strength
from tests.support.adapters import UNET, make_form

LINEAR = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "unet.mid_block.resnets.1.conv2"
SHAPE = {LINEAR: (40, 24), CONV: (20, 12, 3, 3)}


def normal(random, *shape):
    return random.standard_normal(shape).astype(np.float32)


def others(seed=0):
    """One of each other method for the linear module, and a LoKr and a LoHa for the convolution."""
    r = np.random.default_rng(seed)
    lora = LoraFactors(normal(r, 4, 24), normal(r, 40, 4), 2.0)
    return {
        "loha": LohaFactors(normal(r, 40, 3), normal(r, 3, 24), normal(r, 40, 3), normal(r, 3, 24), 2.0),
        "loha core": LohaFactors(
            normal(r, 3, 20), normal(r, 3, 12), normal(r, 3, 20), normal(r, 3, 12), 2.0,
            normal(r, 3, 3, 3, 3), normal(r, 3, 3, 3, 3),
        ),
        "lokr": LokrFactors(normal(r, 5, 4), None, 2.0, w2_a=normal(r, 8, 2), w2_b=normal(r, 2, 6)),
        "lokr whole": LokrFactors(normal(r, 5, 4), normal(r, 8, 6), 2.0),
        "lokr both": LokrFactors(
            None, None, 3.0, w1_a=normal(r, 5, 2), w1_b=normal(r, 2, 4), w2_a=normal(r, 8, 2),
            w2_b=normal(r, 2, 6),
        ),
        "lokr core": LokrFactors(
            normal(r, 5, 4), None, 2.0, w2_a=normal(r, 2, 4), w2_b=normal(r, 2, 3), t2=normal(r, 2, 2, 3, 3)
        ),
        "dora": DoraFactors(lora, np.abs(normal(r, 40))),
        "oft": OftFactors(normal(r, 6, 6) / 4),
    }  # fmt: skip


class OneWeight:
    """A base of a single weight."""

    def __init__(self, weight):
        self.weight = weight

    def read(self, module):
        return self.weight


def dense(form, module=LINEAR, weight=None):
    shape = SHAPE[module]
    return change_of(
        form.everything[module], np.zeros(shape, np.float32) if weight is None else weight
    ).astype(np.float64)


def close(got, wanted, limit=1e-5):
    return np.linalg.norm(got - wanted) <= limit * np.linalg.norm(wanted)


def form_of(seed=0, **options):
    return make_form(SHAPE, seed=seed, **options)


def best(matrix, rank):
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank], s


@pytest.mark.parametrize("method", others())
def test_every_method_is_found_from_its_factors(method):
    factors = others()[method]
    module = CONV if "core" in method else LINEAR
    weight = normal(np.random.default_rng(5), *SHAPE[module])
    change = change_from("sd15", module, factors, OneWeight(weight))
    wanted = change_of(factors, weight)
    assert change.lora().delta().shape == wanted.shape
    assert close(change.lora().delta().astype(np.float64), wanted)


@pytest.mark.parametrize("method", ["dora", "oft"])
def test_what_depends_on_the_weight_needs_the_base(method):
    with pytest.raises(BadInput, match=r"whose change depends on the base's weight\. name the base"):
        change_from("sd15", LINEAR, others()[method])
    with pytest.raises(BadInput, match="in the base"):
        change_from("sd15", LINEAR, others()[method], OneWeight(np.zeros((7, 7), np.float32)))


def test_singular_values_norms_and_products_come_from_the_factors():
    a, b = form_of(1), form_of(2)
    one, two = (change_from("sd15", LINEAR, form.modules[LINEAR]) for form in (a, b))
    whole = dense(a)
    wanted = np.linalg.svd(whole, compute_uv=False)[:4]
    assert np.allclose(singular_values(one)[:4], wanted, rtol=1e-5)
    assert np.allclose(svd(one).s[:4], wanted, rtol=1e-5)
    assert inner(one, two) == pytest.approx(float((whole * dense(b)).sum()), rel=1e-4)


def test_a_large_matrix_is_decomposed_as_a_small_one():
    random = np.random.default_rng(0)
    matrix = normal(random, 900, 20) @ normal(random, 20, 700) + normal(random, 900, 700) / 100
    found = dense_svd(matrix, 20)
    wanted, s = best(matrix.astype(np.float64), 20)
    assert np.allclose(found.s, s[:20], rtol=1e-5)
    assert close(found.cut(20, ()).dense(), wanted, 1e-3)
    lost = np.linalg.norm(matrix - found.cut(20, ()).dense()) / np.linalg.norm(matrix)
    assert found.error(20) == pytest.approx(lost, rel=1e-2)


@pytest.mark.parametrize("module", SHAPE)
def test_concat_is_the_exact_sum(module):
    parts = [
        Ingredient(str(w), form_of(n, rank=2 + n, alpha=3.0), make_strength(w))
        for n, w in enumerate((0.8, -0.5, 1.3))
    ]
    form, report = merge(parts, MergeSettings())
    wanted = sum(part.strength.weight * dense(part.form, module) for part in parts)
    assert close(dense(form, module), wanted)
    assert report.total_error == 0
    assert form.modules[LINEAR].rank == 2 + 3 + 4
    assert all(factors.alpha == factors.rank for factors in form.modules.values())
    assert form.modules[module].delta().shape == SHAPE[module]


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_svd_is_the_best_of_its_rank_and_says_its_error(rank):
    a, b = form_of(1), form_of(2)
    parts = [Ingredient("a", a, make_strength(0.8)), Ingredient("b", b, make_strength(0.6))]
    form, report = merge(parts, MergeSettings("svd", RankRule(rank)))
    whole = 0.8 * dense(a) + 0.6 * dense(b)
    wanted, s = best(whole, rank)
    assert close(dense(form), wanted)
    result = next(item for item in report.modules if item.module == LINEAR)
    assert result.error == pytest.approx(np.sqrt((s[rank:] ** 2).sum() / (s**2).sum()), abs=1e-6)


def test_svd_without_a_rank_takes_the_largest_that_goes_in():
    form, _ = merge(
        [Ingredient("a", form_of(1, rank=3)), Ingredient("b", form_of(2, rank=5))], MergeSettings("svd")
    )
    assert form.modules[LINEAR].rank == 5


def test_ties_is_the_paper_s():
    a, b, c = (form_of(n, rank=3) for n in range(3))
    weights = (1.0, 0.7, -0.4)
    parts = [
        Ingredient(str(n), f, make_strength(w))
        for n, (f, w) in enumerate(zip((a, b, c), weights, strict=True))
    ]
    form, _ = merge(parts, MergeSettings("ties", RankRule(24), 0.3))
    trimmed = []
    for item, weight in zip((a, b, c), weights, strict=True):
        values = weight * dense(item)
        limit = np.sort(np.abs(values).ravel())[-round(0.3 * values.size)]
        trimmed.append(np.where(np.abs(values) >= limit, values, 0))
    stack = np.stack(trimmed)
    agrees = (np.sign(stack) == np.sign(stack.sum(0))) & (stack != 0)
    wanted = (stack * agrees).sum(0) / np.maximum(agrees.sum(0), 1)
    assert close(dense(form), wanted)


def test_dare_keeps_the_mean_and_repeats_itself():
    a = form_of(1, rank=2)
    settings = MergeSettings("dare", RankRule(24), 0.5)
    form, _ = merge([Ingredient("a", a)], settings)
    again, _ = merge([Ingredient("a", a)], settings)
    other, _ = merge([Ingredient("a", a)], MergeSettings("dare", RankRule(24), 0.5, seed=1))
    got, wanted = dense(form), dense(a)
    assert np.array_equal(got, dense(again))
    assert not np.array_equal(got, dense(other))
    kept = np.abs(got) > 1e-5
    assert 0.4 < kept.mean() < 0.6
    assert close(got[kept], 2 * wanted[kept], 1e-4)


def test_all_weights_of_one_are_the_adapter_itself():
    a = form_of(3)
    for chosen in (
        MergeSettings(),
        MergeSettings("svd"),
        MergeSettings("ties", RankRule(4), 1.0),
        MergeSettings("dare", RankRule(4), 1.0),
    ):
        form, _ = merge([Ingredient("a", a)], chosen)
        for module in SHAPE:
            assert close(dense(form, module), dense(a, module)), chosen.method


def test_text_encoders_and_blocks_have_weights_of_their_own():
    a = make_form(seed=1)
    form, report = merge(
        [Ingredient("a", a, make_strength(0.8, 0.2, "IN00=0,MID=0.5,*attn2*=-1,OUT05=3"))], MergeSettings()
    )
    expected = {
        "unet.conv_in": None,
        "unet.mid_block.resnets.1.conv2": 0.4,
        "unet.time_embedding.linear_1": 0.8,
    }
    expected |= {name: -0.8 for name in UNET if "attn2" in name}
    expected |= {name: 0.2 for name in a.modules if name.startswith("text")}
    for module, weight in expected.items():
        if weight is None:
            assert module not in form.modules
        else:
            assert close(form.delta(module), weight * a.delta(module)), module
    assert report.notes == ()


def test_a_block_weight_that_is_about_nothing_is_said():
    _, report = merge([Ingredient("a", form_of(), make_strength(1, None, "OUT11=0"))], MergeSettings())
    assert report.notes == ("a: block weight OUT is about none of its modules",)


def test_what_cannot_be_merged_is_refused_with_both_named():
    a, b = form_of(1), make_form({LINEAR: (32, 24)}, seed=2)
    with pytest.raises(BadInput, match="is 40 x 24 in adapter a and 32 x 24 in adapter b"):
        merge([Ingredient("a", a), Ingredient("b", b)], MergeSettings())
    other = AdapterForm("sdxl", b.modules)
    with pytest.raises(BadInput, match="adapter b: is for sdxl, adapter a for sd15"):
        merge([Ingredient("a", a), Ingredient("b", other)], MergeSettings())
    with pytest.raises(BadInput, match="has nothing in it: all weights are 0"):
        merge([Ingredient("a", a, make_strength(0))], MergeSettings())
    with pytest.raises(BadInput, match="is of no known family"):
        merge([Ingredient("a", AdapterForm("", a.modules))], MergeSettings())
    with pytest.raises(BadInput, match="has no adapters"):
        merge([], MergeSettings())


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        (MergeSettings("sum"), "method 'sum': is unknown"),
        (MergeSettings("concat", RankRule(4)), "adds the ranks up"),
        (MergeSettings("svd", density=0.5), "density: means nothing to svd"),
        (MergeSettings("ties", density=1.5), "is not a share"),
        (MergeSettings("svd", RankRule(-1)), "rank -1: is not between"),
        (MergeSettings("svd", RankRule(sv_fro=0.9, sv_ratio=2)), "cannot both choose"),
        (MergeSettings("svd", RankRule(sv_fro=float("nan"))), "is not a share"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, wrong):
    with pytest.raises(BadInput, match=wrong):
        merge([Ingredient("a", form_of())], settings)


def test_words_go_along_and_two_meanings_are_refused():
    rows = np.ones((2, 8), np.float32)
    a = AdapterForm("sd15", form_of(1).modules, words={"zork": {"text_encoder": rows}})
    b = AdapterForm("sd15", form_of(2).modules, words={"zork": {"text_encoder": rows * 2}})
    form, _ = merge([Ingredient("a", a), Ingredient("a again", a)], MergeSettings())
    assert list(form.words) == ["zork"]
    with pytest.raises(BadInput, match="is another one in adapter a than in adapter b"):
        merge([Ingredient("a", a), Ingredient("b", b)], MergeSettings())


@pytest.mark.parametrize("alpha", ["rank", "scale"])
@pytest.mark.parametrize("module", SHAPE)
def test_resizing_is_the_best_of_its_rank(alpha, module):
    a = form_of(1, rank=8, alpha=2.0, conv_rank=8, conv_alpha=4.0)
    form, report = resize(a, RankRule(3), alpha=alpha)
    wanted, s = best(dense(a, module).reshape(SHAPE[module][0], -1), 3)
    assert close(dense(form, module).reshape(wanted.shape), wanted)
    factors = form.modules[module]
    assert factors.rank == 3
    assert factors.scale == pytest.approx(1.0 if alpha == "rank" else a.modules[module].scale)
    result = next(item for item in report.modules if item.module == module)
    assert result.error == pytest.approx(np.sqrt((s[3:] ** 2).sum() / (s**2).sum()), abs=1e-6)
    assert report.total_error >= min(item.error for item in report.modules)


def test_the_dynamic_rules_are_kohya_s():
    a = form_of(1, rank=8)
    s = np.linalg.svd(dense(a), compute_uv=False)[:8]
    for value in (2.0, 1.3, 1000.0):
        form, _ = resize(a, RankRule(sv_ratio=value))
        assert form.modules[LINEAR].rank == max(1, int((s > s[0] / value).sum()))
    for value in (0.5, 0.9, 0.99, 1.0):
        by_fro = resize(a, RankRule(sv_fro=value))[0].modules[LINEAR].rank
        assert by_fro == min(8, int(np.searchsorted(np.cumsum(s**2) / (s**2).sum(), value**2 - 1e-9)) + 1)
        by_sum = resize(a, RankRule(sv_cumulative=value))[0].modules[LINEAR].rank
        assert by_sum == min(8, int(np.searchsorted(np.cumsum(s) / s.sum(), value - 1e-9)) + 1)
    assert resize(a, RankRule(2, sv_fro=0.99))[0].modules[LINEAR].rank == 2


def test_no_rank_is_larger_than_what_is_there():
    form, report = resize(form_of(1, rank=4), RankRule(64))
    assert form.modules[LINEAR].rank == 4
    assert report.total_error < 1e-6


def test_a_module_of_zeros_stays_one():
    modules = {LINEAR: LoraFactors(np.ones((4, 24), np.float32), np.zeros((40, 4), np.float32), 4.0)}
    form, report = resize(AdapterForm("sd15", modules), RankRule(2))
    assert (form.modules[LINEAR].rank, report.total_error) == (1, 0.0)
    assert not dense(form).any()


@given(
    st.lists(
        st.tuples(st.integers(1, 6), st.integers(-20, 20).map(lambda n: n / 10), st.floats(0.5, 8)),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 2**20),
)
@settings(max_examples=40, deadline=None)
def test_any_sum_is_exact_and_no_svd_of_full_rank_loses(parts, seed):
    made = [
        Ingredient(str(n), form_of(seed + n, rank=rank, alpha=alpha), make_strength(weight))
        for n, (rank, weight, alpha) in enumerate(parts)
    ]
    wanted = sum(part.strength.weight * dense(part.form) for part in made)
    size = sum(abs(part.strength.weight) * np.linalg.norm(dense(part.form)) for part in made)
    if not any(part.strength.weight for part in made):
        return
    for settings_ in (MergeSettings(), MergeSettings("svd", RankRule(24))):
        form, report = merge(made, settings_)
        assert np.linalg.norm(dense(form) - wanted) <= 1e-5 * size
        assert report.total_error < 1e-5


@given(st.integers(1, 10), st.floats(1.01, 100), st.integers(0, 2**20))
@settings(max_examples=40, deadline=None)
def test_the_stated_error_is_the_error(rank, ratio, seed):
    a = form_of(seed, rank=10)
    for rule in (
        RankRule(rank),
        RankRule(sv_ratio=ratio),
        RankRule(rank, sv_fro=0.8),
        RankRule(sv_cumulative=0.7),
    ):
        form, report = resize(a, rule)
        stated = next(item.error for item in report.modules if item.module == LINEAR)
        assert stated == pytest.approx(
            np.linalg.norm(dense(form) - dense(a)) / np.linalg.norm(dense(a)), abs=1e-5
        )
