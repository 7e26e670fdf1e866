import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_synth.config import ConfigError, DataError
from megatron_synth.evaluation import (
    DocumentLosses,
    compare_arms,
    mean_loss,
    paired_bootstrap,
    read_losses,
    resampled_sums,
    write_losses,
)


def make_losses(documents=200, shift=0.0, noise=0.0, seed=0):
    generator = np.random.default_rng(seed)
    tokens = generator.integers(20, 400, documents)
    hardness = generator.normal(4.0, 0.8, documents)
    own = np.random.default_rng(seed + 1000).normal(0, noise, documents) if noise else 0.0
    return DocumentLosses(
        tuple(f"d{i}" for i in range(documents)), (hardness + shift + own) * tokens, tokens
    )


def test_mean_is_weighted_by_tokens():
    mean, _ = mean_loss(np.array([10.0, 100.0]), np.array([10, 50]))
    assert mean == pytest.approx(110 / 60)


def test_standard_error_is_the_spread_of_means_over_fresh_samples():
    generator = np.random.default_rng(1)
    means, errors = [], []
    for _ in range(2000):
        tokens = generator.integers(10, 300, 60)
        nll = tokens * generator.normal(3.0, 0.5, 60)
        mean, error = mean_loss(nll, tokens)
        means.append(mean)
        errors.append(error)
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.06)


def test_standard_error_of_one_document_is_not_a_number():
    assert math.isnan(mean_loss(np.array([3.0]), np.array([2]))[1])


def test_equal_token_counts_give_the_usual_standard_error():
    losses = np.array([1.0, 2.0, 4.0, 7.0])
    _, error = mean_loss(losses * 5, np.full(4, 5))
    assert error == pytest.approx(losses.std(ddof=1) / 2)


@pytest.mark.parametrize(
    ("nll", "tokens", "words"),
    [
        ([], [], "no document losses"),
        ([1.0, math.nan], [1, 1], "not finite"),
        ([1.0, 2.0], [1, 0], "no predicted token"),
        ([1.0, 2.0], [1], "equal vectors"),
    ],
)
def test_losses_without_a_mean_are_refused(nll, tokens, words):
    with pytest.raises(DataError, match=words):
        mean_loss(np.array(nll), np.array(tokens))


def test_losses_file_gives_back_what_was_written(tmp_path):
    losses = make_losses(30)
    write_losses(tmp_path / "losses.parquet", losses)
    back = read_losses(tmp_path / "losses.parquet")
    assert back.ids == losses.ids
    assert np.array_equal(back.nll_sum, losses.nll_sum)
    assert back.tokens.dtype == np.int64
    assert [p.name for p in tmp_path.iterdir()] == ["losses.parquet"]


def test_a_file_that_is_no_losses_file_is_refused_by_name(tmp_path):
    path = tmp_path / "losses.parquet"
    with pytest.raises(DataError, match="no such file"):
        read_losses(path)
    path.write_text("hello")
    with pytest.raises(DataError, match=r"losses\.parquet"):
        read_losses(path)


def test_a_killed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "losses.parquet"
    write_losses(path, make_losses(5))
    before = path.read_bytes()

    def killed(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("pyarrow.parquet.write_table", killed)
    with pytest.raises(KeyboardInterrupt):
        write_losses(path, make_losses(9))
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_documents_that_occur_twice_are_refused():
    with pytest.raises(DataError, match="more than once"):
        DocumentLosses(("a", "a"), np.array([1.0, 2.0]), np.array([1, 1]))


def test_paired_interval_is_far_narrower_than_the_documents_spread():
    a, b = make_losses(shift=-0.01, noise=0.02), make_losses()
    interval = paired_bootstrap(a.nll_sum, b.nll_sum, a.tokens, seed=3)
    _, error = mean_loss(a.nll_sum, a.tokens)
    assert interval.low < interval.estimate < interval.high
    assert interval.high - interval.low < error / 4


def test_bootstrap_interval_covers_the_true_difference_at_its_rate():
    generator = np.random.default_rng(5)
    covered = 0
    for trial in range(300):
        tokens = generator.integers(50, 200, 80)
        b = tokens * generator.normal(4, 1, 80)
        a = b + tokens * generator.normal(-0.05, 0.2, 80)
        interval = paired_bootstrap(a, b, tokens, seed=trial, resamples=1000)
        covered += interval.low <= -0.05 <= interval.high
    assert 0.90 <= covered / 300 <= 0.985


def test_bootstrap_depends_on_the_seed_alone():
    a, b = make_losses(50, noise=0.1), make_losses(50)
    first = paired_bootstrap(a.nll_sum, b.nll_sum, a.tokens, seed=1)
    assert first == paired_bootstrap(a.nll_sum, b.nll_sum, a.tokens, seed=1)
    assert first != paired_bootstrap(a.nll_sum, b.nll_sum, a.tokens, seed=2)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 60), st.floats(-3, 3), st.integers(0, 10**6))
def test_a_constant_difference_has_an_interval_of_no_width(documents, shift, seed):
    base = make_losses(documents, seed=seed)
    shifted = base.nll_sum + shift * base.tokens
    interval = paired_bootstrap(shifted, base.nll_sum, base.tokens, seed, resamples=200)
    assert interval.low == pytest.approx(shift, abs=1e-9)
    assert interval.high == pytest.approx(shift, abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 40), st.integers(0, 10**6))
def test_swapping_the_arms_mirrors_the_interval(documents, seed):
    a, b = make_losses(documents, noise=0.3, seed=seed), make_losses(documents, seed=seed)
    one = paired_bootstrap(a.nll_sum, b.nll_sum, a.tokens, seed, resamples=300)
    two = paired_bootstrap(b.nll_sum, a.nll_sum, a.tokens, seed, resamples=300)
    assert (one.low, one.high) == (pytest.approx(-two.high), pytest.approx(-two.low))


def test_resamples_draw_as_many_documents_as_there_are(monkeypatch):
    monkeypatch.setattr("megatron_synth.evaluation.bootstrap._CELLS", 50)  # several blocks
    sums = resampled_sums(np.ones((1, 17)), seed=0, resamples=123)
    assert sums.shape == (123, 1)
    assert (sums == 17).all()


def test_too_few_resamples_are_refused():
    with pytest.raises(ConfigError, match="too few"):
        resampled_sums(np.ones((1, 5)), resamples=10)


def test_arms_are_compared_with_the_baseline_in_the_order_given():
    arms = {"repeat": make_losses(), "sbp": make_losses(shift=0.2), "unique": make_losses(shift=-1)}
    repeat, sbp, unique = compare_arms(arms, "repeat", resamples=500)
    assert repeat.difference is None
    assert (sbp.name, unique.name) == ("sbp", "unique")
    assert sbp.difference.estimate == pytest.approx(0.2)
    assert unique.difference.excludes_zero
    assert sbp.documents == 200


def test_arms_on_other_documents_are_refused():
    with pytest.raises(DataError, match="different documents: 200 and 100, of which 100"):
        compare_arms({"a": make_losses(), "b": make_losses(100)}, "a")
    with pytest.raises(ConfigError, match="no arm is named 'c'"):
        compare_arms({"a": make_losses()}, "c")


def test_arms_with_other_token_counts_are_refused():
    a = make_losses(10)
    b = DocumentLosses(a.ids, a.nll_sum, a.tokens + 1)
    with pytest.raises(DataError, match="different tokens"):
        compare_arms({"a": a, "b": b}, "a")


def make_grouped(generator, groups=25, members=40, correlation=0.2):
    """Paired losses with a true difference of -0.05 that varies by group and by document."""
    count = groups * members
    tokens = generator.integers(50, 200, count)
    shared = np.repeat(generator.normal(0, math.sqrt(correlation), groups), members)
    own = generator.normal(0, math.sqrt(1 - correlation), count)
    base = tokens * generator.normal(4, 1, count)
    names = tuple(f"p{i // members}" for i in range(count))
    ids = tuple(map(str, range(count)))
    return (
        DocumentLosses(ids, base + tokens * (0.2 * (shared + own) - 0.05), tokens, groups=names),
        DocumentLosses(ids, base, tokens, groups=names),
    )


def test_intervals_over_groups_cover_the_truth_where_documents_of_a_group_are_alike():
    generator = np.random.default_rng(7)
    covered = {"groups": 0, "documents": 0, "errors": 0}
    for trial in range(200):
        a, b = make_grouped(generator)
        draws = {"seed": trial, "resamples": 400}
        for kind, groups in (("groups", a.groups), ("documents", None)):
            interval = paired_bootstrap(a.nll_sum, b.nll_sum, a.tokens, groups=groups, **draws)
            covered[kind] += interval.low <= -0.05 <= interval.high
        mean, error = mean_loss(a.nll_sum - b.nll_sum, a.tokens, groups=a.groups)
        covered["errors"] += abs(mean + 0.05) <= 1.96 * error
    assert covered["groups"] >= 0.85 * 200
    assert covered["errors"] >= 0.85 * 200
    assert covered["documents"] < 0.65 * 200  # what taking documents singly would claim


def test_documents_without_a_group_are_clusters_of_their_own():
    a, b = make_losses(60, noise=0.2), make_losses(60)
    alone = (None,) * 60
    singly = paired_bootstrap(a.nll_sum, b.nll_sum, a.tokens, seed=1)
    assert paired_bootstrap(a.nll_sum, b.nll_sum, a.tokens, seed=1, groups=alone) == singly
    names = tuple(map(str, range(60)))
    assert paired_bootstrap(a.nll_sum, b.nll_sum, a.tokens, seed=1, groups=names) == singly
    assert mean_loss(a.nll_sum, a.tokens, groups=names) == mean_loss(a.nll_sum, a.tokens)
    mixed = DocumentLosses(("a", "b", "c", "d"), np.ones(4), np.ones(4), ("x", None, "x", None))
    assert mixed.clusters == 3


@given(
    st.lists(st.sampled_from(["p", "q", "r", None]), min_size=2, max_size=30), st.integers(0, 99)
)
def test_a_cluster_counts_as_one_document_with_its_sums(groups, seed):
    losses = make_losses(len(groups), seed=seed)
    order = {}
    for index, group in enumerate(groups):
        order.setdefault(index if group is None else group, []).append(index)
    nll = np.array([losses.nll_sum[members].sum() for members in order.values()])
    tokens = np.array([losses.tokens[members].sum() for members in order.values()])
    mean, error = mean_loss(losses.nll_sum, losses.tokens, groups=groups)
    assert (mean, error) == pytest.approx(mean_loss(nll, tokens), nan_ok=True)
    if len(order) == 1:
        return
    draws = {"seed": seed, "resamples": 100}
    sums = resampled_sums(losses.nll_sum[None], groups=groups, **draws)
    assert np.allclose(sums, resampled_sums(nll[None], **draws))


def test_groups_come_back_from_the_file_and_older_files_have_none(tmp_path):
    path = tmp_path / "losses.parquet"
    plain = make_losses(3)
    grouped = DocumentLosses(plain.ids, plain.nll_sum, plain.tokens, ("x", None, "x"))
    write_losses(path, grouped)
    assert read_losses(path).groups == ("x", None, "x")
    pq.write_table(pq.read_table(path).drop_columns("group"), path)
    assert read_losses(path).groups is None
    write_losses(path, DocumentLosses(plain.ids, plain.nll_sum, plain.tokens, (None,) * 3))
    assert read_losses(path).groups is None
    with pytest.raises(DataError, match="2 groups for 3 documents"):
        DocumentLosses(plain.ids, plain.nll_sum, plain.tokens, ("x", "y"))


def test_arms_say_how_many_clusters_their_intervals_rest_on():
    a, b = make_grouped(np.random.default_rng(0))
    base, arm = compare_arms({"b": b, "a": a}, "b", resamples=500)
    assert (base.clusters, arm.clusters, arm.documents) == (25, 25, 1000)
    assert arm.few_clusters
    ungrouped = {
        name: DocumentLosses(x.ids, x.nll_sum, x.tokens) for name, x in (("b", b), ("a", a))
    }
    _, singly = compare_arms(ungrouped, "b", resamples=500)
    assert singly.clusters == 1000
    assert not singly.few_clusters
    assert singly.error < arm.error
    width = singly.difference.high - singly.difference.low
    assert width < (arm.difference.high - arm.difference.low) / 1.5
    with pytest.raises(DataError, match="different groups"):
        compare_arms({"b": b, "a": ungrouped["a"]}, "b")


def test_one_cluster_has_no_interval():
    a, b = make_grouped(np.random.default_rng(0), groups=1)
    base, arm = compare_arms({"b": b, "a": a}, "b", resamples=500)
    assert arm.difference is None
    assert base.error is None
    with pytest.raises(DataError, match="one cluster"):
        paired_bootstrap(a.nll_sum, b.nll_sum, a.tokens, groups=a.groups)
