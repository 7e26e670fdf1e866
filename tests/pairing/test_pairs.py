import gzip
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_synth.config import ConfigError, DataError, parse_config
from megatron_synth.corpus.shingles import shares_shingle
from megatron_synth.pairing import PairConfig, find_pairs, read_pairs
from megatron_synth.pairing.duplicates import no_test, shingle_test
from megatron_synth.pairing.neighbours import find_neighbours
from megatron_synth.pairing.pairs import select
from megatron_synth.runs import Progress

PASSAGE = " ".join(f"passage{chr(97 + i)}" for i in range(15))


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def make_vectors(documents=60, dimension=8, groups=6, seed=0, spread=0.3):
    """Documents in groups: i belongs to group i % groups."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(groups, dimension))
    noise = generator.normal(size=(documents, dimension))
    return unit(centres[np.arange(documents) % groups] + spread * noise).astype(np.float16)


@pytest.fixture
def case(tmp_path):
    """A function that writes vectors and texts, finds pairs, and gives counts and pairs."""

    def run(vectors, texts=None, **settings):
        texts = texts or [f"text number {i}" for i in range(len(vectors))]
        np.save(tmp_path / "embeddings.npy", vectors)
        lines = [json.dumps({"id": f"d{i}", "text": text}) for i, text in enumerate(texts)]
        (tmp_path / "documents.jsonl").write_text("\n".join(lines) + "\n")
        config = PairConfig(**{"min_pairs": 1, "threads": 1, **settings})
        counts = find_pairs(
            config,
            tmp_path / "embeddings.npy",
            tmp_path / "documents.jsonl",
            tmp_path / "out",
            Progress(),
        )
        return counts, read_pairs(tmp_path / "out" / "pairs.parquet")

    run.folder = tmp_path
    return run


def expected(vectors, threshold):
    similarity = vectors.astype(np.float32) @ vectors.astype(np.float32).T
    np.fill_diagonal(similarity, -1)
    return {(int(a), int(b)) for a, b in np.argwhere(similarity > threshold)}


def test_pairs_are_all_directed_pairs_over_the_threshold(case):
    vectors = make_vectors()
    counts, (d1, d2, similarity) = case(vectors, threshold=0.8)
    assert set(zip(d1.tolist(), d2.tolist(), strict=True)) == expected(vectors, 0.8)
    assert len(d1) == counts["pairs"] > 50
    assert (similarity > 0.8).all()
    assert (np.diff(similarity) <= 0).all()
    assert d1.dtype == d2.dtype == np.int64
    assert similarity.dtype == np.float32


def test_every_candidate_is_a_pair_or_counted_under_one_reason(case):
    texts = [PASSAGE if i in (0, 6, 12) else f"text {i}" for i in range(60)]
    counts, _ = case(
        make_vectors(), texts, threshold=0.7, directions="one", max_pairs_per_document=2
    )
    dropped = counts["dropped"]
    assert dropped["self"] == 60
    assert dropped["near_duplicate"] == 6
    assert dropped["other_direction"] > 0
    assert dropped["over_cap"] > 0
    assert counts["candidates"] == counts["pairs"] + sum(dropped.values()) - dropped["self"]


def test_the_papers_threshold_is_the_default():
    assert PairConfig().floor == 0.75
    assert PairConfig(threshold=0.5).floor == 0.5
    assert PairConfig(target_pairs=500).floor is None


def test_one_direction_keeps_each_unordered_pair_once(case):
    _, (d1, d2, _) = case(make_vectors(), threshold=0.8, directions="one")
    unordered = [tuple(sorted(p)) for p in zip(d1.tolist(), d2.tolist(), strict=True)]
    assert len(unordered) == len(set(unordered))
    assert set(unordered) == {tuple(sorted(p)) for p in expected(make_vectors(), 0.8)}


def test_pairs_that_share_a_passage_are_dropped_in_both_directions(case):
    texts = [f"text {i}" for i in range(60)]
    texts[0], texts[6] = f"Intro. {PASSAGE} end", f"{PASSAGE.upper()}, other words"
    counts, (d1, d2, _) = case(make_vectors(), texts, threshold=0.7)
    pairs = set(zip(d1.tolist(), d2.tolist(), strict=True))
    assert {(0, 6), (6, 0)} & expected(make_vectors(), 0.7) == {(0, 6), (6, 0)}
    assert not {(0, 6), (6, 0)} & pairs
    assert counts["dropped"]["near_duplicate"] == 2
    counts, _ = case(make_vectors(), texts, threshold=0.7, drop_near_duplicates=False)
    assert counts["dropped"]["near_duplicate"] == 0


def test_cap_keeps_the_most_similar_of_each_document(case):
    vectors = make_vectors()
    _, (d1, d2, _) = case(vectors, threshold=0.5, max_pairs_per_document=2)
    similarity = vectors.astype(np.float32) @ vectors.astype(np.float32).T
    np.fill_diagonal(similarity, -1)
    assert np.bincount(d1).max() == 2
    for document in range(5):
        best = set(np.argsort(-similarity[document])[:2].tolist())
        assert set(d2[d1 == document].tolist()) == best


def test_neighbours_bound_what_each_document_may_have(case):
    _, (d1, _, _) = case(make_vectors(), threshold=0.1, neighbours=3)
    assert np.bincount(d1).max() == 3


def test_target_sets_a_threshold_that_gives_the_same_pairs_again(case):
    texts = [PASSAGE if i in (0, 6, 12) else f"text {i}" for i in range(60)]
    counts, first = case(make_vectors(), texts, target_pairs=101, directions="one")
    assert counts["pairs"] == 101
    assert counts["target_pairs"] == 101
    again, second = case(make_vectors(), texts, threshold=counts["threshold"], directions="one")
    assert again["pairs"] == 101
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_target_out_of_reach_takes_what_there_is_but_nothing_unrelated(case):
    counts, (_, _, similarity) = case(make_vectors(), target_pairs=10**6)
    assert 0 < counts["pairs"] < 10**6
    assert similarity.min() > 0


def test_too_few_pairs_is_an_error_with_quantiles_and_thresholds(case):
    with pytest.raises(DataError) as caught:
        case(make_vectors(spread=2.0), threshold=0.97, min_pairs=40)
    message = str(caught.value)
    assert "fewer than min_pairs = 40" in message
    assert "Quantiles" in message
    assert not (case.folder / "out").exists()
    offered = float(re.search(r"dropped: (\S+) gives 40", message)[1])
    counts, _ = case(make_vectors(spread=2.0), threshold=offered - 1e-4, min_pairs=40)
    assert counts["pairs"] >= 40


def test_documents_without_a_direction_have_no_pairs(case):
    vectors = make_vectors()
    vectors[[3, 9]] = 0
    counts, (d1, d2, _) = case(vectors, threshold=-0.99, neighbours=200)
    assert not {3, 9} & set(d1.tolist() + d2.tolist())
    assert counts["dropped"]["self"] == 58


def test_report_has_histogram_samples_and_texts(case):
    texts = [PASSAGE if i in (0, 6, 12) else f"<script>{i}</script>" for i in range(60)]
    counts, _ = case(make_vectors(), texts, threshold=0.7)
    report = json.loads((case.folder / "out" / "report.json").read_text())
    histogram = report["histogram"]
    assert len(histogram["edges"]) == len(histogram["pairs"]) + 1
    assert sum(histogram["pairs"]) == counts["pairs"]
    assert sum(histogram["neighbours"]) == counts["candidates"]
    assert len(report["samples"]) == 6
    similarities = [s["similarity"] for s in report["samples"]]
    assert similarities == sorted(similarities, reverse=True)
    assert report["near_duplicate_samples"][0]["d1_text"] == PASSAGE
    assert report["quantiles"]["nearest"]["1"] >= report["quantiles"]["nearest"]["0.5"]


@pytest.mark.parametrize("index", ["ivf_flat", "ivf_sq8"])
def test_inverted_lists_find_nearly_what_exact_search_finds(index):
    vectors = make_vectors(3000, 32, 40, spread=0.5).astype(np.float32)
    settings = {"neighbours": 20, "threads": 1, "nprobe": 16}
    exact = find_neighbours(PairConfig(**settings), vectors, Progress())
    near = find_neighbours(PairConfig(**settings, index=index), vectors, Progress())
    assert (exact.index, near.index) == ("flat", index)
    truth = set(zip(exact.d1.tolist(), exact.d2.tolist(), strict=True))
    found = set(zip(near.d1.tolist(), near.d2.tolist(), strict=True))
    assert len(truth & found) / len(truth) > 0.9


def test_order_and_result_do_not_depend_on_threads():
    vectors = np.repeat(make_vectors(200), 3, axis=0).astype(np.float32)  # many equal similarities
    one = find_neighbours(PairConfig(threads=1, neighbours=250), vectors, Progress())
    two = find_neighbours(PairConfig(threads=2, neighbours=250), vectors, Progress())
    assert np.array_equal(one.similarity, two.similarity)
    chosen = [select(PairConfig(threshold=0.8), c, no_test, Progress()) for c in (one, two)]
    pairs = [set(zip(c.d1[s.kept], c.d2[s.kept], strict=True)) for c, s in zip((one, two), chosen)]  # noqa: B905
    assert pairs[0] == pairs[1]


@pytest.mark.parametrize("target", [None, 600])
def test_comparing_texts_block_by_block_changes_nothing(target, monkeypatch):
    texts = [PASSAGE if i in (0, 6, 12, 18) else f"text {i}" for i in range(60)]
    config = PairConfig(threshold=None if target else 0.6, target_pairs=target, min_pairs=1)
    candidates = find_neighbours(PairConfig(threads=1), make_vectors(), Progress())
    whole = select(config, candidates, shingle_test(texts), Progress())
    monkeypatch.setattr("megatron_synth.pairing.pairs._BLOCK", 7)
    parts = select(config, candidates, shingle_test(texts), Progress())
    assert np.array_equal(whole.kept, parts.kept)
    assert np.array_equal(whole.near_duplicates, parts.near_duplicates)
    assert whole.drops == parts.drops
    assert len(whole.near_duplicates) > 0


def test_embeddings_of_other_documents_are_refused(case):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": [f"x{i}" for i in range(60)]}), case.folder / "ids.parquet")
    with pytest.raises(DataError, match="of other documents"):
        case(make_vectors(), threshold=0.8)
    (case.folder / "ids.parquet").unlink()
    with pytest.raises(DataError, match="60 embeddings for 59 documents"):
        case(make_vectors(), [f"text {i}" for i in range(59)], threshold=0.8)


def test_wrong_embeddings_are_refused_by_name(case):
    with pytest.raises(DataError, match="do not have unit norm"):
        case(make_vectors() * 2, threshold=0.8)
    with pytest.raises(DataError, match="cannot form a pair"):
        case(make_vectors(1, groups=1), threshold=0.8)
    with pytest.raises(DataError, match="matrix of floats"):
        case(np.arange(6), threshold=0.8)


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match="threshold or target_pairs, not both"):
        parse_config({"threshold": 0.5, "target_pairs": 500}, PairConfig, where="x")
    with pytest.raises(ConfigError, match="below min_pairs"):
        parse_config({"target_pairs": 5}, PairConfig, where="x")


def test_a_killed_step_starts_over_and_gives_the_same_files(case, monkeypatch):
    _, before = case(make_vectors(), threshold=0.8)
    (case.folder / "out" / "report.json").unlink()
    (case.folder / "out" / "pairs.parquet").unlink()
    monkeypatch.setattr(
        "megatron_synth.pairing.pairs.write_json",
        lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()),
    )
    with pytest.raises(KeyboardInterrupt):
        case(make_vectors(), threshold=0.8)
    monkeypatch.undo()
    _, after = case(make_vectors(), threshold=0.8)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert sorted(p.name for p in (case.folder / "out").iterdir()) == [
        "pairs.parquet",
        "report.json",
    ]


words = st.lists(st.sampled_from("abcde"), min_size=0, max_size=60).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(words, min_size=2, max_size=6))
def test_the_fast_shingle_test_agrees_with_the_plain_one(texts):
    pairs = [(a, b) for a in range(len(texts)) for b in range(len(texts)) if a != b]
    found = shingle_test(texts)(*np.array(pairs).T)
    assert found.tolist() == [shares_shingle(texts[a], texts[b]) for a, b in pairs]


DATA = Path(
    os.environ.get("MEGATRON_SYNTH_TEST_DATA", Path(__file__).parents[2] / "../shared/data")
)


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "corpus").is_dir(), reason="no test data folder")
def test_near_duplicates_of_real_text_are_dropped(case):
    """gov_web with bag-of-words vectors: every pair over 0.99 shares a passage or is dropped."""
    texts = []
    with gzip.open(DATA / "corpus" / "gov_web.jsonl.gz", "rt", encoding="utf-8") as handle:
        for line, _ in zip(handle, range(1200), strict=False):
            texts.append(json.loads(line)["text"])
    generator = np.random.default_rng(0)
    directions: dict[str, np.ndarray] = {}
    rows = []
    for text in texts:
        row = np.zeros(128)
        for word in text.lower().split():
            if len(word) > 5:
                row += directions.setdefault(word, generator.normal(size=128))
        rows.append(row)
    raw = np.array(rows)
    counts, (d1, d2, _) = case(unit(raw - raw.mean(0)), texts, threshold=0.6)
    assert counts["dropped"]["near_duplicate"] >= 10
    assert not shingle_test(texts)(d1, d2).any()
