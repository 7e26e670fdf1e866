"""Approximate search: what it finds, how its recall is measured and tuned, what it holds."""

import logging
import tracemalloc

import numpy as np
import pytest

from megatron_synth.pairing import PairConfig, find_pairs
from megatron_synth.pairing.index import build_index
from megatron_synth.pairing.neighbours import find_neighbours
from megatron_synth.pairing.recall import NEAR_DUPLICATE, RecallSample, tune
from megatron_synth.pairing.vectors import Rows, load_vectors
from megatron_synth.runs import Progress

INDICES = ["ivf_flat", "ivf_sq8", "ivf_pq4fs", "hnsw"]
K = 20


def overlapping_groups(documents=3000, dimension=32, groups=40, spread=0.5, seed=0):
    """float16 [documents, dimension] unit rows; groups run into each other."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(groups, dimension))
    noise = generator.normal(size=(documents, dimension))
    rows = centres[np.arange(documents) % groups] + spread * noise
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def true_neighbours(vectors, k=K):
    """By plain numpy: (similarity float32 [n, n] with -2 on the diagonal, int64 [n, k])."""
    full = vectors.astype(np.float32)
    similarity = full @ full.T
    np.fill_diagonal(similarity, -2)
    return similarity, np.argsort(-similarity, axis=1, kind="stable")[:, :k]


def recall_of(candidates, truth, documents=None):
    found = set(zip(candidates.d1.tolist(), candidates.d2.tolist(), strict=True))
    asked = range(len(truth)) if documents is None else documents
    wanted = {(i, int(j)) for i in asked for j in truth[i]}
    return len(found & wanted) / len(wanted)


@pytest.mark.parametrize("index", INDICES)
def test_every_index_finds_what_the_target_asks_for(index):
    vectors = overlapping_groups()
    config = PairConfig(index=index, neighbours=K, threads=1, recall_target=0.95)
    found = find_neighbours(config, vectors, Progress())
    similarity, truth = true_neighbours(vectors)
    assert found.index == index
    assert found.search["recall"] >= 0.95
    assert recall_of(found, truth) > 0.93  # the sample's recall is an estimate
    assert np.bincount(found.d1, minlength=3000).max() == K
    assert not (found.d1 == found.d2).any()
    tolerance = 0.02 if index == "ivf_sq8" else 1e-3
    assert np.allclose(found.similarity, similarity[found.d1, found.d2], atol=tolerance)


def test_reported_recall_is_that_of_all_neighbours_when_all_are_sampled():
    vectors = overlapping_groups(1600, spread=0.6)
    config = PairConfig(
        index="ivf_pq4fs", neighbours=K, threads=1, recall_target=None, nprobe=2, recall_sample=1600
    )
    found = find_neighbours(config, vectors, Progress())
    similarity, truth = true_neighbours(vectors)
    assert similarity.max() < NEAR_DUPLICATE
    assert found.search["recall"] == pytest.approx(recall_of(found, truth), abs=1e-3)
    assert found.search == {**found.search, "nprobe": 2, "k_factor": 2.0, "target": None}


def test_a_higher_target_searches_more_lists():
    rows = Rows.of(overlapping_groups())
    efforts = []
    for target in (0.5, 0.9, 0.99):
        config = PairConfig(index="ivf_flat", neighbours=K, threads=1, recall_target=target)
        index = build_index(config, rows)
        recall = tune(config, index, rows)
        assert recall is not None
        assert recall >= target
        efforts.append(index.effort)
        if index.effort > 1:  # bisection ends near the least effort: half of it is not enough
            index.effort //= 2
            assert RecallSample.draw(config, rows).recall(index, K) < target
    assert efforts == sorted(efforts)
    assert efforts[0] < efforts[-1]


def test_more_candidates_are_reranked_where_more_lists_do_not_help():
    rows = Rows.of(overlapping_groups(spread=3.0))
    config = PairConfig(
        index="ivf_pq4fs", neighbours=5, threads=1, recall_target=0.999, k_factor=1.0
    )
    index = build_index(config, rows)
    recall = tune(config, index, rows)
    assert recall is not None
    assert index.k_factor > 1
    index.k_factor, index.effort = 1.0, index.max_effort
    assert RecallSample.draw(config, rows).recall(index, 5) < recall


def test_a_target_out_of_reach_is_said_and_the_best_is_used(caplog):
    vectors = overlapping_groups(spread=3.0)
    config = PairConfig(index="ivf_sq8", neighbours=K, threads=1, recall_target=1.0)
    with caplog.at_level(logging.WARNING):
        found = find_neighbours(config, vectors, Progress())
    assert "is all that ivf_sq8 gives" in caplog.text
    assert 0.8 < found.search["recall"] < 1


def test_near_duplicates_do_not_count_towards_recall():
    vectors = overlapping_groups(1500)
    copies = vectors.copy()
    copies[750:] = copies[:750]  # everyone has a copy, which any index finds
    rows = Rows.of(copies)
    sample = RecallSample.draw(PairConfig(neighbours=K, recall_sample=300), rows)
    asked, place = np.nonzero(sample.truth >= 0)
    partner = sample.truth[asked, place]
    assert len(partner) > 300
    assert not ((partner - sample.places[asked]) % 750 == 0).any()


def test_recall_without_any_neighbour_that_counts_is_whole():
    rows = Rows.of(np.repeat(overlapping_groups(2), 600, axis=0))
    config = PairConfig(index="ivf_flat", neighbours=K, threads=1)
    assert tune(config, build_index(config, rows), rows) == 1.0


@pytest.mark.parametrize("index", ["auto", *INDICES])
def test_few_documents_are_searched_exactly_whatever_the_index(index):
    vectors = overlapping_groups(300)
    found = find_neighbours(PairConfig(index=index, neighbours=K, threads=1), vectors, Progress())
    assert found.index == "flat"
    assert found.search == {}
    assert recall_of(found, true_neighbours(vectors)[1]) == 1


def test_many_documents_get_reranked_codes_by_default(monkeypatch):
    monkeypatch.setattr("megatron_synth.pairing.index.EXACT_LIMIT", 2000)
    vectors = overlapping_groups()
    found = find_neighbours(PairConfig(neighbours=K, threads=1), vectors, Progress())
    assert found.index == "ivf_pq4fs"
    assert find_neighbours(PairConfig(), vectors[:2000], Progress()).index == "flat"


@pytest.mark.parametrize("index", INDICES)
def test_documents_without_a_direction_are_neither_asked_nor_found(index):
    vectors = overlapping_groups()
    vectors[[0, 17, 2999]] = 0
    found = find_neighbours(PairConfig(index=index, neighbours=K, threads=1), vectors, Progress())
    assert not {0, 17, 2999} & set(np.concatenate([found.d1, found.d2]).tolist())
    assert recall_of(found, true_neighbours(vectors)[1], range(1, 17)) > 0.8
    assert len(np.unique(found.d1)) == 2997


@pytest.mark.parametrize("index", ["ivf_pq4fs", "flat"])
def test_the_same_seed_gives_the_same_neighbours(index):
    vectors = overlapping_groups()
    config = PairConfig(index=index, neighbours=K, threads=1, seed=3)
    one, two = (find_neighbours(config, vectors, Progress()) for _ in range(2))
    assert np.array_equal(one.d1, two.d1)
    assert np.array_equal(one.d2, two.d2)
    assert one.search == two.search


def test_odd_dimensions_are_coded_too():
    vectors = overlapping_groups(dimension=33)
    config = PairConfig(index="ivf_pq4fs", neighbours=K, threads=1)
    assert find_neighbours(config, vectors, Progress()).search["recall"] >= 0.9


def test_reading_embeddings_copies_none_of_them(tmp_path):
    path = tmp_path / "embeddings.npy"
    np.save(path, overlapping_groups(40_000, 64))
    tracemalloc.start()
    vectors = load_vectors(path)
    Rows.of(vectors)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(vectors, np.memmap)
    assert peak < 2 * 16_384 * 64 * 4 + 1e6  # two blocks in float32; the whole file has 5.1 MB


def test_how_the_index_was_set_stands_in_the_report(tmp_path):
    vectors = overlapping_groups()
    np.save(tmp_path / "embeddings.npy", vectors)
    lines = [f'{{"id": "d{i}", "text": "text {i}"}}\n' for i in range(len(vectors))]
    (tmp_path / "documents.jsonl").write_text("".join(lines))
    counts = find_pairs(
        PairConfig(threshold=0.7, index="ivf_pq4fs", threads=1, neighbours=K),
        tmp_path / "embeddings.npy",
        tmp_path / "documents.jsonl",
        tmp_path / "out",
        Progress(),
    )
    assert set(counts["search"]) == {"nprobe", "k_factor", "recall", "target"}
    assert counts["search"]["recall"] >= 0.9
