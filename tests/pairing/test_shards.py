"""Key shards x value shards: the merge equals one search; each block survives a kill."""

import multiprocessing
import os
import signal

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_synth.config import ConfigError, DataError
from megatron_synth.pairing import PairConfig, shards
from megatron_synth.pairing.neighbours import find_neighbours
from megatron_synth.pairing.shards import merge_blocks, read_neighbours, search_blocks
from megatron_synth.runs import Progress


def save_shards(folder, vectors, cuts):
    """Files of `vectors` cut at `cuts`."""
    paths = []
    for number, part in enumerate(np.split(vectors, cuts)):
        paths.append(folder / f"part{number}.npy")
        np.save(paths[-1], part)
    return paths


def search_everything(config, paths, out):
    """All blocks, then all merges: d1, d2, similarity of all documents, and the counts."""
    for value in range(len(paths)):
        search_blocks(config, paths, range(len(paths)), value, out, Progress())
    counts = [merge_blocks(config, paths, key, out, Progress()) for key in range(len(paths))]
    merged = [read_neighbours(out / f"neighbours-{key:05d}.parquet") for key in range(len(paths))]
    return [np.concatenate([m[i] for m in merged]) for i in range(3)], counts


def random_vectors(documents=90, dimension=16, seed=0):
    rows = np.random.default_rng(seed).normal(size=(documents, dimension))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


# Rows of four entries +-1/2 among six: inner products are exact, and ties abound.
signs = st.lists(st.sampled_from([-0.5, 0.5]), min_size=4, max_size=4)
row = st.tuples(st.permutations(range(6)), signs)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(st.one_of(st.none(), row), min_size=3, max_size=24),
    k=st.integers(1, 9),
    group=st.sampled_from([2, 5, 8192]),
    data=st.data(),
)
def test_merged_blocks_are_the_exact_search_over_everything(
    tmp_path_factory, monkeypatch, rows, k, group, data
):
    vectors = np.zeros((len(rows), 6), np.float16)  # None: a document without a direction
    for number, entries in enumerate(rows):
        if entries is not None:
            vectors[number, list(entries[0][:4])] = entries[1]
    cuts = sorted(data.draw(st.sets(st.integers(1, len(rows) - 1), max_size=4)))
    monkeypatch.setattr(shards, "_GROUP", group)
    folder = tmp_path_factory.mktemp("shards")
    paths = save_shards(folder, vectors, cuts)
    (d1, d2, similarity), counts = search_everything(
        PairConfig(neighbours=k, threads=1), paths, folder / "out"
    )
    assert sum(c["relations"] for c in counts) == len(d1)
    assert [c["documents"] for c in counts] == [len(p) for p in np.split(vectors, cuts)]
    full = vectors.astype(np.float32)
    products = full @ full.T
    present = np.flatnonzero(full.any(1))
    for document in range(len(rows)):
        mine = d1 == document
        others = present[present != document] if document in present else []
        best = np.sort(products[document][others])[::-1][:k]
        assert similarity[mine].tolist() == best.tolist()  # the k best, ties included
        found = d2[mine]
        assert len(set(found.tolist())) == len(found)
        assert set(found.tolist()) <= set(np.asarray(others).tolist())
        assert products[document][found].tolist() == similarity[mine].tolist()


def test_shards_give_the_neighbours_of_one_file(tmp_path):
    vectors = random_vectors()
    config = PairConfig(neighbours=7, threads=1)
    (d1, d2, similarity), counts = search_everything(
        config, save_shards(tmp_path, vectors, [20, 61]), tmp_path / "out"
    )
    whole = find_neighbours(config, vectors, Progress())
    order = np.lexsort((whole.d2, -whole.similarity, whole.d1))
    assert np.array_equal(d1, whole.d1[order])
    assert np.array_equal(d2, whole.d2[order])
    assert np.allclose(similarity, whole.similarity[order], atol=1e-4)
    assert {c["recall"] for c in counts} == {None}


def test_approximate_blocks_keep_the_recall_that_they_report(tmp_path):
    vectors = random_vectors(3000, 16)
    config = PairConfig(neighbours=10, threads=1, index="ivf_pq4fs", recall_target=0.9)
    (d1, d2, _), counts = search_everything(
        config, save_shards(tmp_path, vectors, [1500]), tmp_path / "out"
    )
    exact = find_neighbours(config.model_copy(update={"index": "flat"}), vectors, Progress())
    truth = set(zip(exact.d1.tolist(), exact.d2.tolist(), strict=True))
    found = set(zip(d1.tolist(), d2.tolist(), strict=True))
    assert min(c["recall"] for c in counts) >= 0.9
    assert len(truth & found) / len(truth) > 0.87  # the samples' recall is an estimate


def test_a_block_that_is_there_is_not_searched_again(tmp_path, monkeypatch):
    paths = save_shards(tmp_path, random_vectors(), [40])
    config = PairConfig(neighbours=5, threads=1)
    (block,) = search_blocks(config, paths, [1], 0, tmp_path / "out", Progress())
    written = block.stat().st_mtime_ns, block.read_bytes()
    monkeypatch.setattr(shards, "tuned_index", None)  # building an index would fail now
    assert search_blocks(config, paths, [1], 0, tmp_path / "out", Progress()) == [block]
    assert (block.stat().st_mtime_ns, block.read_bytes()) == written


def test_a_block_of_other_settings_or_vectors_is_searched_anew(tmp_path):
    vectors = random_vectors()
    paths = save_shards(tmp_path, vectors, [40])
    out = tmp_path / "out"
    (block,) = search_blocks(PairConfig(neighbours=5, threads=1), paths, [0], 0, out, Progress())
    before = read_neighbours(block)
    search_blocks(PairConfig(neighbours=6, threads=1), paths, [0], 0, out, Progress())
    assert len(read_neighbours(block)[0]) == 40 * 6
    save_shards(tmp_path, vectors[::-1], [40])
    search_blocks(PairConfig(neighbours=5, threads=1), paths, [0], 0, out, Progress())
    assert not np.array_equal(read_neighbours(block)[1], before[1])


def test_settings_that_search_does_not_read_leave_blocks_valid(tmp_path):
    paths = save_shards(tmp_path, random_vectors(), [40])
    search_everything(PairConfig(neighbours=5, threads=1), paths, tmp_path)
    other = PairConfig(neighbours=5, threads=2, threshold=0.5)
    assert merge_blocks(other, paths, 0, tmp_path, Progress())["documents"] == 40


def test_a_merge_names_the_blocks_that_are_missing(tmp_path):
    paths = save_shards(tmp_path, random_vectors(), [30, 60])
    config = PairConfig(neighbours=5, threads=1)
    search_blocks(config, paths, [0, 1], 1, tmp_path, Progress())
    with pytest.raises(DataError, match="2 of 3 blocks are missing") as caught:
        merge_blocks(config, paths, 0, tmp_path, Progress())
    assert "block-00000-00000.parquet, block-00000-00002.parquet" in str(caught.value)
    with pytest.raises(DataError, match="3 of 3 blocks"):
        merge_blocks(PairConfig(neighbours=6), paths, 0, tmp_path, Progress())
    assert not list(tmp_path.glob("neighbours-*"))


def test_wrong_shards_are_refused_by_name(tmp_path):
    paths = save_shards(tmp_path, random_vectors(), [40])
    config = PairConfig(threads=1)
    with pytest.raises(ConfigError, match="no shard 2: there are 2, from 0 to 1"):
        search_blocks(config, paths, [0], 2, tmp_path / "out", Progress())
    np.save(paths[1], random_vectors(50, 8))
    with pytest.raises(DataError, match=r"has 8 dimensions, part0\.npy has 16"):
        search_blocks(config, paths, [1], 0, tmp_path / "out", Progress())
    np.save(paths[1], 2 * random_vectors(50))
    with pytest.raises(DataError, match="unit norm"):
        search_blocks(config, paths, [1], 0, tmp_path / "out", Progress())
    with pytest.raises(DataError, match="no such file of neighbours"):
        read_neighbours(tmp_path / "absent.parquet")
    (tmp_path / "block-00000-00000.parquet").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="damaged"):
        merge_blocks(config, paths, 0, tmp_path, Progress())


def _search_and_die(paths, out, groups):
    """Search a block, and end this process for good after so many groups."""
    original = shards._nearest
    done = []

    def counted(*arguments):
        done.append(0)
        if len(done) > groups:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)

    shards._nearest = counted
    shards._GROUP = 8
    search_blocks(PairConfig(neighbours=5, threads=1), paths, [0, 1], 0, out, Progress())


@pytest.mark.slow
@pytest.mark.parametrize("groups", [0, 3, 7])
def test_a_killed_block_leaves_nothing_half_written_and_gives_the_same_again(
    tmp_path, monkeypatch, groups
):
    paths = save_shards(tmp_path, random_vectors(), [40])
    monkeypatch.setattr(shards, "_GROUP", 8)
    config = PairConfig(neighbours=5, threads=1)
    undisturbed = search_blocks(config, paths, [0, 1], 0, tmp_path / "undisturbed", Progress())
    process = multiprocessing.get_context("spawn").Process(
        target=_search_and_die, args=(paths, tmp_path / "killed", groups)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    there = {path.name for path in (tmp_path / "killed").glob("*.parquet")}
    assert there == ({"block-00000-00000.parquet"} if groups > 5 else set())
    again = search_blocks(config, paths, [0, 1], 0, tmp_path / "killed", Progress())
    for one, two in zip(undisturbed, again, strict=True):
        assert one.read_bytes() == two.read_bytes()


def test_a_group_of_a_file_holds_the_keys_of_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_GROUP", 16)
    vectors = random_vectors()
    vectors[16:32] = 0
    paths = save_shards(tmp_path, vectors, [70])
    search_everything(PairConfig(neighbours=5, threads=1), paths, tmp_path)
    file = pq.ParquetFile(tmp_path / "neighbours-00000.parquet")
    assert file.num_row_groups == 5
    assert file.read_row_group(1).num_rows == 0
    assert set(file.read_row_group(2)["d1"].to_pylist()) == set(range(32, 48))
