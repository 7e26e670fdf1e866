"""How often each organic source was trained on, its derived documents counted in."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_synth.blending import BlendConfig, BlendedStreams, audit, corpus_size, solve
from megatron_synth.blending.recount import exposure
from megatron_synth.blending.recount.exposure import ServedCorpus, write_exposure
from megatron_synth.blending.recount.keys import text_keys
from megatron_synth.config import DataError
from megatron_synth.packing.provenance import ProvenanceWriter

S, G = 8, 4


def side_table(prefix, rows):
    """Rows are (id, source_id, method)."""
    path = prefix.with_name(f"{prefix.name}_text_document.provenance.parquet")
    with ProvenanceWriter(path) as table:
        table.add(*(list(column) for column in zip(*rows, strict=True)))
    return path


def served(tmp_path, name, rows, tokens, begun=None, meant=None):
    path = side_table(tmp_path / name, rows) if rows else tmp_path / "absent.parquet"
    tokens = np.array(tokens, dtype=np.int64)
    begun = np.ones_like(tokens) if begun is None else np.array(begun)
    return ServedCorpus(name, path, tokens, begun, meant)


def rows_of(path):
    return {row["source_id"]: row for row in pq.read_table(path).to_pylist()}


ORGANIC = [("d1", None, None), ("d2", "d2", None), ("d3", None, None)]
SYNTHETIC = [
    ("d1/sbp-0-0", "d1", "sbp"),
    ("d1/sbp-0-1", "d1", "sbp"),
    ("d3", "d3", "stitch"),  # a megadoc may bear its source's id
    ("s", None, "self_distill"),
    ("t", "gone", "sbp"),
]


def test_derived_documents_count_for_their_source(tmp_path):
    out = tmp_path / "exposure.parquet"
    organic = served(tmp_path, "organic", ORGANIC, [10, 20, 0])
    synthetic = served(tmp_path, "synthetic", SYNTHETIC, [5, 7, 50, 3, 4], [1, 2, 3, 1, 1])
    summary = write_exposure([organic, synthetic], out)
    expected = {
        "d1": (22, 10, 12, 3, 10, 12),
        "d2": (20, 20, 0, 0, 20, 0),
        "d3": (50, 0, 50, 3, 0, 50),
        "gone": (4, 0, 4, 1, 0, 4),
    }
    columns = ["tokens", "tokens_organic", "tokens_derived", "derived_begun"]
    columns += ["tokens:organic", "tokens:synthetic"]
    found = {name: tuple(row[c] for c in columns) for name, row in rows_of(out).items()}
    assert found == expected
    assert pq.read_table(out).column_names == ["source_id", *columns]
    assert list(found) == ["d1", "d2", "d3", "gone"]  # as the side tables name them
    assert summary == {
        "sources": 4,
        "sources_unseen": 0,
        "min": 4,
        "median": 21.0,
        "mean": 24.0,
        "p99": pytest.approx(np.percentile([4, 20, 22, 50], 99)),
        "max": 50,
        "top_1_percent_share": 50 / 96,
        "tokens": 99,
        "tokens_unknown": 3,
        "most_exposed": [
            {"source_id": "d3", "tokens": 50},
            {"source_id": "d1", "tokens": 22},
            {"source_id": "d2", "tokens": 20},
            {"source_id": "gone", "tokens": 4},
        ],
    }


def test_sources_that_were_never_served_stand_in_the_table(tmp_path):
    out = tmp_path / "e.parquet"
    summary = write_exposure([served(tmp_path, "o", ORGANIC, [0, 8, 0])], out)
    assert (summary["sources"], summary["sources_unseen"], summary["min"]) == (3, 2, 0)
    assert rows_of(out)["d1"]["tokens"] == 0


def test_documents_that_the_plan_does_not_mean_are_no_sources(tmp_path):
    out = tmp_path / "e.parquet"
    corpus = served(tmp_path, "o", ORGANIC, [0, 8, 0], meant=np.array([False, True, True]))
    assert write_exposure([corpus], out)["sources"] == 2
    assert list(rows_of(out)) == ["d2", "d3"]


def test_a_corpus_without_a_side_table_is_unknown_and_said_once(tmp_path, caplog):
    caplog.set_level("INFO")
    absent = [served(tmp_path, name, None, [3, 4]) for name in ("x", "y")]
    summary = write_exposure(absent, tmp_path / "e.parquet")
    assert (summary["sources"], summary["tokens"], summary["tokens_unknown"]) == (0, 14, 14)
    assert summary["max"] is None and summary["most_exposed"] == []
    assert [r.message for r in caplog.records if "side table" in r.message] == [
        "no side table of provenance: tokens of x, y have no source"
    ]
    assert pq.read_table(tmp_path / "e.parquet").num_rows == 0


def test_a_side_table_of_another_corpus_is_refused(tmp_path):
    with pytest.raises(DataError, match="has 3 rows, the corpus 2 documents"):
        write_exposure([served(tmp_path, "o", ORGANIC, [1, 2])], tmp_path / "e.parquet")
    assert not (tmp_path / "e.parquet").exists()


@given(
    texts=st.lists(st.one_of(st.none(), st.text(max_size=30))),
    start=st.integers(0, 5),
    wide=st.booleans(),
)
def test_keys_of_texts_are_equal_just_where_texts_are(texts, start, wide):
    array = pa.array(texts, pa.large_string() if wide else pa.string()).slice(start)
    keys, texts = text_keys(array).tolist(), texts[start:]
    assert len(keys) == len(texts)
    pairs = {(text or "", key) for text, key in zip(texts, keys, strict=True)}
    assert len(pairs) == len({text or "" for text in texts}) == len(set(keys))


def test_keys_are_fnv_1a_finished_by_splitmix64():
    value = 0xCBF29CE484222325
    for byte in b"ab":
        value = (value ^ byte) * 0x100000001B3 % (1 << 64)
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % (1 << 64)
    value = (value ^ value >> 27) * 0x94D049BB133111EB % (1 << 64)
    assert text_keys(pa.array(["ab"])).tolist() == [value ^ value >> 31]


@settings(max_examples=25)
@given(data=st.data())
def test_many_small_batches_count_as_one(tmp_path_factory, data):
    """The table does not depend on how many rows are looked at together."""
    folder = tmp_path_factory.mktemp("e")
    names = st.sampled_from([None, *(f"d{i}" for i in range(6))])
    rows = data.draw(st.lists(st.tuples(names, names, st.sampled_from([None, "sbp"])), min_size=1))
    tokens = data.draw(st.lists(st.integers(0, 9), min_size=len(rows), max_size=len(rows)))
    corpus = served(folder, "o", rows, tokens)
    expected = Counter()
    for (own, source, method), count in zip(rows, tokens, strict=True):
        origin = source if source is not None else (None if method else own)
        if origin is not None:
            expected[origin] += count
    summaries = []
    for batch in (1, 3, 1 << 18):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(exposure, "_ROWS", batch)
            summaries.append(write_exposure([corpus], folder / f"{batch}.parquet"))
        found = rows_of(folder / f"{batch}.parquet")
        assert {name: row["tokens"] for name, row in found.items()} == dict(expected)
        assert len(found) == pq.read_metadata(folder / f"{batch}.parquet").num_rows
    assert summaries[0] == summaries[1] == summaries[2]
    assert summaries[0]["tokens_unknown"] == sum(tokens) - expected.total()


@pytest.fixture
def run(tmp_path, make_corpus, monkeypatch):
    monkeypatch.setenv("MEGATRON_SYNTH_INDEX", str(tmp_path / "indices"))
    lengths = np.random.default_rng(3).integers(2, 30, 40).tolist()
    prefixes = {
        "organic": make_corpus("organic", lengths),
        "synthetic": make_corpus("synthetic", lengths[:15], first=10_000),
    }
    side_table(prefixes["organic"], [(f"d{i}", None, None) for i in range(40)])
    side_table(prefixes["synthetic"], [(f"s{i}", f"d{i // 2}", "sbp") for i in range(15)])
    sizes = {n: corpus_size(p) for n, p in prefixes.items()}

    def solved(after=None, after_step=None):
        config = BlendConfig.model_validate(
            {
                "sequence_length": S,
                "global_batch_size": G,
                "budget": {"steps": 37},
                "corpora": {"synthetic": {"share": 0.3}, "organic": {}},
            }
        )
        return solve(config, sizes, after=after, after_step=after_step)

    return solved, prefixes, lengths


def counted_by_hand(plan, prefixes, lengths, steps):
    """Inputs by source, told by the tokens themselves: but EOS, every one occurs once."""
    last = {"organic": np.cumsum(np.array(lengths) - 1), "synthetic": None}
    last["synthetic"] = 9_999 + np.cumsum(np.array(lengths[:15]) - 1)
    found, streams = Counter(), BlendedStreams(plan, prefixes)
    for i in range(steps * G):
        sample = streams[i]
        name = plan.corpora[sample["dataset_id"]].name
        document = None
        for token, label in zip(sample["tokens"].tolist(), sample["labels"].tolist(), strict=True):
            if token:
                document = int(np.searchsorted(last[name], token))
            elif document is None:
                found["?"] += 1  # the window begins with an EOS: whose, the tokens do not say
                continue
            found[f"d{document if name == 'organic' else document // 2}"] += 1
            if not token:
                document = None if label else document
    return found


def test_the_audit_counts_what_was_served(run, tmp_path):
    solved, prefixes, lengths = run
    plan = solved()
    out = tmp_path / "exposure.parquet"
    found = audit(plan, prefixes, 20, exposure=out)
    assert found.faults == ()
    by_hand = counted_by_hand(plan, prefixes, lengths, 20)
    table = {name: row["tokens"] for name, row in rows_of(out).items()}
    assert sum(table.values()) == 20 * G * S == found.exposure["tokens"]
    assert all(table.get(name, 0) >= n for name, n in by_hand.items() if name != "?")
    assert sum(by_hand.values()) == 20 * G * S and by_hand["?"] < 20
    begun = sum(row["derived_begun"] for row in rows_of(out).values())
    assert begun == found.counted["synthetic"]["documents_begun"]
    assert found.as_json()["exposure"]["sources"] == 40
    assert found.exposure["tokens_unknown"] == 0


def test_earlier_phases_count_too(run, tmp_path):
    solved, prefixes, _ = run
    first = solved()
    second = solved(after=first, after_step=11)
    out = tmp_path / "exposure.parquet"
    found = audit(second, prefixes, 5, before=[first], exposure=out)
    assert found.exposure["tokens"] == (11 + 5) * G * S
    assert sum(c["tokens"] for c in found.counted.values()) == 5 * G * S
