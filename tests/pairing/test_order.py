"""ICPT order: every document once, along the edges of the neighbour graph."""

import json
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_synth.blending.selection import read_order
from megatron_synth.pairing import PairConfig, find_pairs
from megatron_synth.pairing.neighbours import find_neighbours
from megatron_synth.pairing.order import traverse, write_order
from megatron_synth.runs import Progress


def relations(edges):
    """d1, d2, similarity of (a, b, similarity) triples."""
    columns = list(zip(*edges, strict=True)) if edges else [(), (), ()]
    return (
        np.array(columns[0], np.int64),
        np.array(columns[1], np.int64),
        np.array(columns[2], np.float32),
    )


@st.composite
def graphs(draw):
    documents = draw(st.integers(1, 30))
    number = st.integers(0, documents - 1)
    edge = st.tuples(number, number, st.sampled_from([0.25, 0.5, 0.75, 0.9]))
    return documents, draw(st.lists(edge, max_size=80))


@settings(max_examples=100, deadline=None)
@given(graphs())
def test_every_document_is_visited_once_by_the_rule_of_the_paper(graph):
    documents, edges = graph
    similarity = np.full((documents, documents), -1.0)
    for a, b, value in edges:
        if a != b:
            similarity[a, b] = similarity[b, a] = max(similarity[a, b], np.float32(value))
    found = traverse(relations(edges), documents)
    assert sorted(found.documents.tolist()) == list(range(documents))
    degree = (similarity > -1).sum(1)
    left = set(range(documents))
    before = None
    for document, step in zip(found.documents.tolist(), found.similarity, strict=True):
        near = [d for d in left if before is not None and similarity[before, d] > -1]
        if near:
            assert document == min(near, key=lambda d: (-similarity[before, d], d))
            assert step == np.float32(similarity[before, document])
        else:
            assert document == min(left, key=lambda d: (degree[d], d))
            assert np.isnan(step)
        left.remove(document)
        before = document


@settings(max_examples=50, deadline=None)
@given(graphs(), st.randoms(use_true_random=False))
def test_the_order_of_relations_and_their_direction_do_not_matter(graph, random):
    documents, edges = graph
    other = [(b, a, s) if random.random() < 0.5 else (a, b, s) for a, b, s in edges]
    random.shuffle(other)
    one, two = traverse(relations(edges), documents), traverse(relations(other), documents)
    assert np.array_equal(one.documents, two.documents)


def test_a_planted_chain_is_followed_from_end_to_end():
    chain = np.random.default_rng(0).permutation(500).tolist()
    edges = [(a, b, 0.9) for a, b in pairwise(chain)]
    # Shortcuts are less similar, and leave the ends the documents of least degree.
    edges += [(chain[i], chain[i + 3], 0.3) for i in range(1, 495)]
    found = traverse(relations(edges), 500)
    assert found.documents.tolist() in (chain, chain[::-1])
    assert found.jumps == 0
    assert (found.similarity[1:] == np.float32(0.9)).all()


def test_vectors_along_a_curve_are_read_along_it():
    angles = np.linspace(0, 3, 400)
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1)
    shuffled = np.random.default_rng(1).permutation(400)
    config = PairConfig(neighbours=2, threads=1)
    graph = find_neighbours(config, vectors[shuffled].astype(np.float32), Progress())
    found = traverse((graph.d1, graph.d2, graph.similarity), 400)
    steps = np.abs(np.diff(shuffled[found.documents]))
    assert (steps <= 2).mean() > 0.95


def test_documents_without_neighbours_stand_together_in_front():
    found = traverse(relations([(1, 3, 0.5)]), 5)
    assert found.documents.tolist() == [0, 2, 4, 1, 3]
    assert found.jumps == 3
    assert traverse(relations([]), 3).documents.tolist() == [0, 1, 2]


def test_blending_reads_the_file(tmp_path):
    found = traverse(relations([(0, 2, 0.5), (2, 1, 0.75), (3, 0, 0.25)]), 4)
    write_order(tmp_path / "order.parquet", found, ["a", "b", "c", "d"])
    assert read_order(tmp_path / "order.parquet", 4).tolist() == found.documents.tolist()
    table = pq.read_table(tmp_path / "order.parquet")
    assert table["id"].to_pylist() == ["abcd"[i] for i in found.documents]
    assert table["similarity"].to_pylist()[0] is None
    assert table["similarity"].null_count == found.jumps + 1


def test_finding_pairs_writes_the_order_when_it_is_asked_for(tmp_path):
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(60, 8))
    vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    np.save(tmp_path / "embeddings.npy", vectors)
    lines = [json.dumps({"id": f"d{i}", "text": f"text {i}"}) + "\n" for i in range(60)]
    (tmp_path / "documents.jsonl").write_text("".join(lines))
    inputs = (tmp_path / "embeddings.npy", tmp_path / "documents.jsonl")
    config = PairConfig(threshold=0.5, min_pairs=1, neighbours=5, threads=1, icpt_order=True)
    counts = find_pairs(config, *inputs, tmp_path / "out", Progress())
    order = read_order(tmp_path / "out" / "order.parquet", 60)
    candidates = find_neighbours(config, vectors, Progress())
    expected = traverse((candidates.d1, candidates.d2, candidates.similarity), 60)
    assert np.array_equal(order, expected.documents)
    assert counts["order"]["jumps"] == expected.jumps
    plain = config.model_copy(update={"icpt_order": False})
    assert "order" not in find_pairs(plain, *inputs, tmp_path / "plain", Progress())
    assert not (tmp_path / "plain" / "order.parquet").exists()
