"""The report by similarity: duplicates and labels in each bin, chance, pairs of a document."""

import json

import numpy as np
import pytest

from megatron_synth.config import DataError
from megatron_synth.corpus import Document
from megatron_synth.pairing import PairConfig, bins, find_pairs
from megatron_synth.pairing.bins import (
    chance_of_a_label,
    describe_bins,
    describe_per_document,
    read_labels,
)
from megatron_synth.pairing.neighbours import Candidates
from megatron_synth.runs import Progress

PASSAGE = " ".join(f"passage{chr(97 + i)}" for i in range(15))
EDGES = [0.0, 0.25, 0.5, 0.75, 1.0]


def candidates(rows):
    d1, d2, similarity = (np.array(column) for column in zip(*rows, strict=True))
    return Candidates(d1, d2, similarity.astype(np.float32), 0, "flat")


@pytest.fixture
def found():
    """Six documents: 0, 1 and 2 share a passage; 0 to 3 are about cats, 4 about dogs."""
    texts = [f"{PASSAGE} one", f"{PASSAGE} two", f"three {PASSAGE}", "four", "five", "six"]
    cats, dogs = frozenset({"cats", "pets"}), frozenset({"dogs"})
    labels = [cats, cats, frozenset({"cats"}), cats, dogs, None]
    relations = [(0, 1, 1.0000001), (1, 2, 0.9), (0, 3, 0.8), (0, 4, 0.3), (3, 5, 0.3), (4, 5, -1)]
    return describe_bins(candidates(relations), EDGES, texts, labels, seed=0)


def test_each_bin_tells_its_share_of_duplicates_and_of_common_labels(found):
    low, middle, high = found
    assert (high["low"], high["high"]) == (0.75, 1.0)
    assert (high["neighbours"], high["sampled"], high["labelled"]) == (3, 3, 3)
    assert (high["duplicate"], high["same_label"]) == (pytest.approx(2 / 3), 1.0)
    assert (middle["low"], middle["neighbours"], middle["labelled"]) == (0.25, 2, 1)
    assert (middle["duplicate"], middle["same_label"]) == (0.0, 0.0)
    assert (low["low"], low["labelled"], low["same_label"]) == (0.0, 0, None)


def test_a_bin_with_many_relations_is_sampled_by_seed(monkeypatch):
    monkeypatch.setattr(bins, "_SAMPLES", 40)
    relations = [(n, n + 1, 0.9) for n in range(0, 400, 2)]
    texts = [PASSAGE if n < 200 else f"text {n}" for n in range(401)]
    shares = []
    for seed in (0, 0, 1, 2, 3):
        (row,) = describe_bins(candidates(relations), EDGES, texts, None, seed)
        assert (row["neighbours"], row["sampled"]) == (200, 40)
        assert "same_label" not in row
        shares.append(row["duplicate"])
    assert shares[0] == shares[1]
    assert len(set(shares)) > 1
    assert all(0.2 < share < 0.8 for share in shares)  # half of all


def test_labels_are_one_value_or_a_list_and_anything_else_is_none():
    def read(value):
        return read_labels(Document("d", "text", metadata={"topics": value}), "topics")

    assert read("cats") == {"cats"}
    assert read(3) == {"3"}
    assert read(["cats", "dogs", "cats", None, {}]) == {"cats", "dogs"}
    assert read("") is read([]) is read(None) is read({"a": 1}) is None
    assert read_labels(Document("d", "text"), "topics") is None


def test_chance_is_the_share_of_random_pairs_with_a_label_in_common():
    halves = [frozenset({"ab"[n % 2]}) if n < 60 else None for n in range(100)]
    assert chance_of_a_label(halves, 0) == pytest.approx(0.5 - 0.5 / 59, abs=0.02)
    assert chance_of_a_label([frozenset({"a"}), None], 0) is None


def test_documents_without_a_pair_count_as_none():
    found = describe_per_document(np.array([0, 0, 0, 2]), 5)
    assert found["histogram"] == {"0": 3, "1": 1, "2-3": 1}
    assert (found["max"], found["mean"]) == (3, 0.8)


def write(folder, topics):
    generator = np.random.default_rng(0)
    groups = generator.normal(size=(6, 8))[np.arange(60) % 6]
    vectors = groups + 0.3 * generator.normal(size=(60, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    np.save(folder / "embeddings.npy", vectors.astype(np.float16))
    rows = [{"id": f"d{n}", "text": f"text {n}", "topics": topics(n)} for n in range(60)]
    (folder / "documents.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")


def pair(folder, **settings):
    config = PairConfig(min_pairs=1, threads=1, threshold=0.8, **settings)
    files = (folder / "embeddings.npy", folder / "documents.jsonl", folder / "out")
    find_pairs(config, *files, Progress())
    return json.loads((folder / "out" / "report.json").read_text())


def test_the_report_says_how_similarity_goes_with_labels(tmp_path):
    write(tmp_path, lambda n: [f"topic {n % 6}"])
    report = pair(tmp_path, label_key="topics")
    assert 0.1 < report["label_chance"] < 0.2
    assert report["bins"][-1]["same_label"] == 1.0
    assert report["bins"][0]["same_label"] < 0.2
    assert sum(row["neighbours"] for row in report["bins"]) == report["counts"]["candidates"]
    documents = report["counts"]["documents_as_d1"]
    assert sum(report["per_document"]["histogram"].values()) == 60
    assert 60 - report["per_document"]["histogram"].get("0", 0) == documents
    assert report["per_document"]["mean"] == pytest.approx(report["counts"]["pairs"] / 60)
    assert pair(tmp_path)["label_chance"] is None


def test_a_label_key_that_no_document_has_is_refused(tmp_path):
    write(tmp_path, lambda n: [])
    with pytest.raises(DataError, match="no document has a label 'topics'"):
        pair(tmp_path, label_key="topics")
