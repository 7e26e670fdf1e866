"""Pairs held out of synthesizer tuning: no document of theirs is trained on."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_synth.blending.pair_split import TRAINING, VALIDATION, split_pairs
from megatron_synth.config import DataError


def split(folder, pairs, validation_pairs, seed=0):
    path = folder / "pairs.parquet"
    similarity = np.linspace(1, 0.5, len(pairs), dtype=np.float32)
    columns = {"d1": [a for a, _ in pairs], "d2": [b for _, b in pairs], "similarity": similarity}
    pq.write_table(pa.table(columns), path)
    counts = split_pairs(path, folder, validation_pairs=validation_pairs, seed=seed)
    return counts, *(pq.read_table(folder / name).to_pylist() for name in (TRAINING, VALIDATION))


def documents(rows):
    return {row[side] for row in rows for side in ("d1", "d2")}


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=120),
    asked=st.integers(0, 30),
    seed=st.integers(0, 5),
)
def test_no_document_of_a_held_out_pair_is_trained_on(tmp_path, pairs, asked, seed):
    counts, training, validation = split(tmp_path, pairs, asked, seed)
    assert not documents(training) & documents(validation)
    assert counts["validation_pairs"] == len(validation) <= asked
    assert counts["training_pairs"] == len(training)
    assert counts["left_out"] == len(pairs) - len(training) - len(validation)
    assert counts["left_out"] <= 0.1 * len(pairs)
    firsts = [row["d1"] for row in validation]
    assert len(set(firsts)) == len(firsts)
    kept = sorted((r["d1"], r["d2"], r["similarity"]) for r in [*training, *validation])
    assert (
        len(set(kept) - {(a, b, r) for (a, b), r in zip(pairs, _similar(pairs), strict=True)}) == 0
    )


def _similar(pairs):
    return np.linspace(1, 0.5, len(pairs), dtype=np.float32).tolist()


def test_as_many_are_held_out_as_asked_where_there_is_room(tmp_path):
    pairs = [(2 * i, 2 * i + 1) for i in range(100)]
    counts, training, _ = split(tmp_path, pairs, 10)
    assert counts == {"training_pairs": 90, "validation_pairs": 10, "left_out": 0}
    similarity = [row["similarity"] for row in training]
    assert similarity == sorted(similarity, reverse=True)  # the order stays


def test_fewer_are_held_out_where_their_documents_are_in_many_pairs(tmp_path, caplog):
    hub = [(0, i) for i in range(1, 60)] + [(100 + 2 * i, 101 + 2 * i) for i in range(40)]
    counts, _, validation = split(tmp_path, hub, 41)
    assert counts["validation_pairs"] < 41
    assert 0 not in documents(validation)  # it alone would take 58 pairs away
    assert counts["left_out"] <= 9
    assert "were asked for" in caplog.text


def test_none_are_held_out_unless_asked(tmp_path):
    counts, training, validation = split(tmp_path, [(0, 1), (1, 0)], 0)
    assert (len(training), validation, counts["left_out"]) == (2, [], 0)


def test_the_draw_depends_on_the_seed_alone(tmp_path):
    pairs = [(i, (i * 7) % 50 + 50) for i in range(50)]
    one, same, other = (split(tmp_path, pairs, 3, seed)[2] for seed in (1, 1, 2))
    assert one == same != other


def test_a_file_that_holds_no_pairs_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such pairs file"):
        split_pairs(tmp_path / "nowhere", tmp_path, validation_pairs=1, seed=0)
    pq.write_table(
        pa.table({"d1": pa.array([], pa.int64()), "d2": pa.array([], pa.int64())}), tmp_path / "e"
    )
    with pytest.raises(DataError, match="is empty"):
        split_pairs(tmp_path / "e", tmp_path, validation_pairs=1, seed=0)
