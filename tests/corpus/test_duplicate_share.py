"""Duplicate@N: against exact Jaccard over all pairs, on made texts and on real ones."""

import gzip
import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_synth.corpus import duplicate_share
from megatron_synth.corpus.duplicate_share import (
    SHINGLE_WORDS,
    THRESHOLD,
    DuplicateCount,
    DuplicateSample,
)
from megatron_synth.corpus.shingles import batch_shingles

WORDS = [f"{a}{b}{c}" for a in "bdfgklmn" for b in "aeiou" for c in "rstxz"]


def text(key, count=120):
    return " ".join(random.Random(str(key)).choices(WORDS, k=count))


def changed(base, words, key=0):
    split = base.split()
    for place in random.Random(key).sample(range(len(split)), words):
        split[place] = "changed"
    return " ".join(split)


def counted(texts, limit=1000, seed=0, block=7):
    sample = DuplicateSample(limit, seed)
    for start in range(0, len(texts), block):
        sample.add(texts[start : start + block])
    return sample.count()


def similarities(texts):
    """Exact Jaccard similarities of all pairs, 0 on the diagonal."""
    sets = batch_shingles(texts, SHINGLE_WORDS)
    known = [set(sets[i].tolist()) for i in range(len(texts))]
    found = np.zeros((len(texts), len(texts)))
    for i, left in enumerate(known):
        for j, right in enumerate(known[:i]):
            found[i, j] = found[j, i] = len(left & right) / max(1, len(left | right))
    return found


def test_both_of_a_pair_have_a_duplicate_and_only_the_later_one_repeats():
    base = text("base")
    texts = [text(1), base, text(2), changed(base, 2), base.upper() + "!!", text(3)]
    assert counted(texts) == DuplicateCount(6, 3, 2)


@given(
    unrelated=st.integers(0, 30),
    families=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1)), max_size=6),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=30, deadline=None)
def test_planted_near_duplicates_are_found_and_unrelated_documents_are_not(
    unrelated, families, order
):
    texts = [text(("unrelated", n)) for n in range(unrelated)]
    for number, (others, changes) in enumerate(families):
        base = text(("family", number))
        texts += [base] + [changed(base, changes, key) for key in range(others)]
    order.shuffle(texts)
    exact = similarities(texts)
    near = exact >= THRESHOLD
    # One word changed in 120 leaves 0.84 between two such texts, six standard errors over 0.6.
    assert not ((exact > 0.1) & (exact < 0.8)).any()
    expected = DuplicateCount(len(texts), int(near.any(1).sum()), int(np.tril(near).any(1).sum()))
    assert counted(texts) == expected


def test_shares_agree_with_exact_ones_around_the_threshold():
    texts = []
    for number in range(150):  # pairs of similarities from 0.3 to 0.95
        base = text(("pair", number), 200)
        texts += [base, changed(base, 1 + number % 25)]
    exact = similarities(texts).max(1) >= THRESHOLD
    found = counted(texts).with_duplicate
    assert 0.3 < exact.mean() < 0.7
    assert abs(found - exact.sum()) <= 0.06 * len(texts)


def test_short_texts_are_compared_as_a_whole_and_texts_without_words_never():
    texts = ["two words", "Two  words!", "other words", "1 2 3", "4 5 6", "", "..."]
    assert counted(texts) == DuplicateCount(7, 2, 1)
    assert counted(["", ""]) == DuplicateCount(2, 0, 0)
    assert counted([]) == DuplicateCount(0, 0, 0)


def test_a_crowd_of_copies_costs_no_square_of_comparisons():
    texts = [text("same", 12)] * 40_000
    assert counted(texts, limit=40_000, block=4096) == DuplicateCount(40_000, 40_000, 39_999)


def test_documents_that_stand_far_apart_in_a_run_are_compared_by_another_band(monkeypatch):
    monkeypatch.setattr(duplicate_share, "_MOST_COMPARED", 2)
    head = text("head", 60)
    base = f"{head} {text('far', 60)}"
    texts = [f"{head} {text(n, 60)}" for n in range(40)]  # a third in common
    texts.insert(0, base + " a")
    texts.append(base + " b")
    assert counted(texts) == DuplicateCount(42, 2, 1)


def test_a_sample_is_uniform_over_all_that_was_added_and_drawn_by_seed():
    texts = [text("early")] * 30 + [text(n) for n in range(270)]
    found = [counted(texts, limit=60, seed=seed, block=11).with_duplicate for seed in range(60)]
    assert found == [
        counted(texts, limit=60, seed=seed, block=50).with_duplicate for seed in range(60)
    ]
    assert len(set(found)) > 3
    assert 5 < np.mean(found) < 7  # 60 of 300 documents hold 6 of the 30
    sample = DuplicateSample(60)
    sample.add(texts)
    assert (sample.seen, sample.count().documents) == (300, 60)


def test_fewer_of_a_sample_can_be_compared_first():
    sample = DuplicateSample(1000)
    sample.add([text("same")] * 30 + [text(n) for n in range(30)])
    few = sample.count(among=20)
    assert few.documents == 20
    assert few.repeats == few.with_duplicate - 1 > 3
    assert sample.count(among=90) == sample.count() == DuplicateCount(60, 30, 29)


def test_real_near_duplicates_are_found(real_data):
    with gzip.open(real_data / "corpus/gov_web.jsonl.gz", "rt", encoding="utf-8") as rows:
        texts = [json.loads(row)["text"] for row in rows][:180]
    near = similarities(texts) >= THRESHOLD
    found = counted(texts)
    assert near.any()
    assert found.with_duplicate == pytest.approx(near.any(1).sum(), abs=2)
    assert found.repeats == pytest.approx(np.tril(near).any(1).sum(), abs=2)
