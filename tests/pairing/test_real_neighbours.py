"""Neighbours in real text with topics (gov_web): they share topics, and near-duplicates go."""

import gzip
import json
import re
from collections import Counter

import numpy as np
import pytest

from megatron_synth.pairing import PairConfig, find_pairs, read_pairs
from megatron_synth.pairing.duplicates import shingle_test
from megatron_synth.pairing.neighbours import find_neighbours
from megatron_synth.runs import Progress

pytestmark = pytest.mark.slow
NEAR_DUPLICATE = 0.95
COPIES = [
    (
        "digitalgov/content/events/2018/02/2018-02-15-dap-learning-series-digital-analytics-program-101.md",
        "digitalgov/content/events/2018/08/2018-08-15-dap-learning-series-an-introduction-basics.md",
    ),
    (
        "digitalgov/content/events/2018/01/2018-01-10-us-digital-registry-open-office-hours.md",
        "digitalgov/content/events/2018/02/2018-02-14-us-digital-registry-open-office-hours-feb2017.md",
    ),
    (
        "digitalgov/content/news/2016/10/2016-10-20-announcing-the-digital-acquisition-accelerator-playbook.md",
        "18f/content/posts/2016-10-12-announcing-the-digital-acquisition-accelerator-playbook.md",
    ),
]


def tf_idf_vectors(texts, dimension=256):
    """float16 [texts, dimension]: words weighted by tf-idf, projected at random, unit norm."""
    counts = [Counter(re.findall(r"[a-z]{3,}", text.lower())) for text in texts]
    frequency = Counter(word for count in counts for word in count)
    vocabulary = {w: i for i, w in enumerate(sorted(w for w, n in frequency.items() if n > 1))}
    projection = np.random.default_rng(0).normal(size=(len(vocabulary), dimension))
    rows = np.zeros((len(texts), dimension))
    for row, count in enumerate(counts):
        words = [word for word in count if word in vocabulary]
        weights = [(1 + np.log(count[w])) * np.log(len(texts) / frequency[w]) for w in words]
        rows[row] = np.array(weights) @ projection[[vocabulary[w] for w in words]]
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


@pytest.fixture(scope="module")
def labelled(real_data):
    """Ids and texts with topics (2,784 of them), their topics, and vectors."""
    with gzip.open(real_data / "corpus" / "gov_web.jsonl.gz", "rt", encoding="utf-8") as handle:
        documents = [json.loads(line) for line in handle]
    documents = [document for document in documents if document["topics"]]
    texts = [document["text"] for document in documents]
    ids = [document["id"] for document in documents]
    topics = [set(document["topics"]) for document in documents]
    return ids, texts, topics, tf_idf_vectors(texts)


def test_neighbours_share_a_topic_far_above_chance(labelled):
    _, texts, topics, vectors = labelled
    found = find_neighbours(PairConfig(neighbours=5, threads=1), vectors, Progress())
    other = ~shingle_test(texts)(found.d1, found.d2)  # copies share their topics anyway
    near = np.mean([bool(topics[a] & topics[b]) for a, b in zip(found.d1[other], found.d2[other])])  # noqa: B905
    drawn = np.random.default_rng(0).integers(len(texts), size=(20_000, 2))
    chance = np.mean([bool(topics[a] & topics[b]) for a, b in drawn if a != b])
    assert near > 2 * chance, (near, chance)


def test_the_known_near_duplicates_are_removed(labelled, tmp_path):
    """137 documents of gov_web have another one with a cosine over 0.95; with these vectors 136.

    Some of them by name: `COPIES`.
    """
    ids, texts, _, vectors = labelled
    np.save(tmp_path / "embeddings.npy", vectors)
    lines = [json.dumps({"id": f"d{i}", "text": text}) + "\n" for i, text in enumerate(texts)]
    (tmp_path / "documents.jsonl").write_text("".join(lines), encoding="utf-8")
    config = PairConfig(threshold=0.3, neighbours=20, threads=1)
    inputs = (tmp_path / "embeddings.npy", tmp_path / "documents.jsonl")
    counts = find_pairs(config, *inputs, tmp_path / "out", Progress())
    found = find_neighbours(config, vectors, Progress())
    known = found.similarity > NEAR_DUPLICATE
    assert len(np.unique(found.d1[known])) > 120
    alike = set(zip(found.d1[known].tolist(), found.d2[known].tolist(), strict=True))
    assert {(ids.index(a), ids.index(b)) for a, b in COPIES} <= alike
    d1, d2, similarity = read_pairs(tmp_path / "out" / "pairs.parquet")
    assert len(d1) > 300
    assert similarity.max() <= NEAR_DUPLICATE
    assert not alike & set(zip(d1.tolist(), d2.tolist(), strict=True))
    assert not shingle_test(texts)(d1, d2).any()
    assert counts["dropped"]["near_duplicate"] >= known.sum()
