import pickle
from collections import Counter
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from megatron_synth.blending import BlendConfig, BlendedStreams, PairWindows, corpus_size, solve
from megatron_synth.config import ConfigError, DataError
from megatron_synth.packing import CorpusInfo, paths_of
from megatron_synth.runs import hash_file, hash_json, write_json

EOS, SEPARATOR = 0, 99


@pytest.fixture
def corpus(tmp_path, write_corpus):
    documents = [[11, 12, EOS], [21, EOS], [31, 32, 33, EOS], [*list(range(40, 50)), EOS]]
    return write_corpus(tmp_path / "organic", documents)


def pairs_file(tmp_path, pairs, name="pairs.parquet"):
    first, second = zip(*pairs, strict=True) if pairs else ((), ())
    table = {"d1": first, "d2": second, "similarity": [0.9] * len(pairs)}
    types = pa.schema([("d1", pa.int64()), ("d2", pa.int64()), ("similarity", pa.float32())])
    pq.write_table(pa.table(table, types), tmp_path / name)
    return tmp_path / name


def windows(corpus, path, length=8, **chosen):
    ids = {"eos_id": EOS, "separator_id": SEPARATOR}
    return PairWindows(corpus, path, sequence_length=length, **ids, **chosen)


def test_a_pair_token_by_token(corpus, tmp_path):
    sample = windows(corpus, pairs_file(tmp_path, [(0, 2)]))[0]
    # text: 11 12 | 99 | 31 32 33 | EOS | EOS EOS: 7 tokens, padded to 9
    assert sample["tokens"].tolist() == [11, 12, 99, 31, 32, 33, 0, 0]
    assert sample["labels"].tolist() == [12, 99, 31, 32, 33, 0, 0, 0]
    assert sample["loss_mask"].tolist() == [0, 0, 1, 1, 1, 1, 0, 0]
    assert sample["position_ids"].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert sample["dataset_id"] == 0
    assert sample["loss_mask"].dtype == torch.float32
    assert sample["tokens"].dtype == sample["labels"].dtype == torch.int64


def write_info(prefix, tokens, documents, bos_id):
    info = CorpusInfo(
        documents=documents,
        tokens=tokens,
        text_bytes=1,
        dtype="int32",
        longest=tokens,
        special_spellings=0,
        vocab_size=100,
        eos_id=EOS,
        bos_id=bos_id,
        tokenizer="t",
        content_hash="c",
    )
    write_json(paths_of(prefix).info, asdict(info))


def test_the_second_document_has_no_bos_inside_the_pair(tmp_path, write_corpus):
    bos = 7
    corpus = write_corpus(tmp_path / "bos", [[bos, 11, 12, EOS], [bos, 21, EOS], [31, 32, EOS]])
    write_info(corpus, 10, 3, bos)
    path = pairs_file(tmp_path, [(0, 1)])
    sample = windows(corpus, path, length=6)[0]
    # text: 7 11 12 | 99 | 21 | EOS: 6 tokens, padded to 7
    assert sample["tokens"].tolist() == [bos, 11, 12, SEPARATOR, 21, EOS]
    assert sample["labels"].tolist() == [11, 12, SEPARATOR, 21, EOS, EOS]
    assert sample["loss_mask"].tolist() == [0, 0, 0, 1, 1, 0]
    with pytest.raises(DataError, match=r"begins with token 31, not with BOS \(7\)"):
        windows(corpus, pairs_file(tmp_path, [(0, 2)]), length=8)[0]


def test_a_pair_that_fits_exactly_has_no_padding(corpus, tmp_path):
    built = windows(corpus, pairs_file(tmp_path, [(0, 2)]), length=7)
    assert built.dropped == 0
    assert built[0]["tokens"].tolist() == [11, 12, 99, 31, 32, 33, 0]
    assert built[0]["labels"].tolist() == [12, 99, 31, 32, 33, 0, 0]
    assert built[0]["loss_mask"].tolist() == [0, 0, 1, 1, 1, 1, 0]  # the last label is padding


def test_a_pair_one_token_too_long_is_dropped_and_counted(corpus, tmp_path):
    built = windows(corpus, pairs_file(tmp_path, [(0, 2), (1, 0), (3, 0)]), length=6)
    assert (built.pairs, built.dropped, len(built)) == (1, 2, 1)
    assert built.pairs_of(0) == [(1, 0)]
    assert built.padding_share == pytest.approx(1 - 4 / 6)  # 21 99 11 12 are inputs


def test_every_epoch_serves_every_pair_once_in_an_order_of_its_own(corpus, tmp_path):
    pairs = [(a, b) for a in range(3) for b in range(3) if a != b]
    built = windows(corpus, pairs_file(tmp_path, pairs), samples=30, seed=4)
    served = [built.pairs_of(i)[0] for i in range(30)]
    epochs = [served[i : i + 6] for i in range(0, 30, 6)]
    assert all(sorted(epoch) == pairs for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_order_and_hash_depend_on_the_seed_and_the_content_only(corpus, tmp_path):
    path = pairs_file(tmp_path, [(a, b) for a in range(3) for b in range(3)])
    one, same, other = (windows(corpus, path, seed=seed) for seed in (1, 1, 2))
    assert [one.pairs_of(i) for i in range(9)] == [same.pairs_of(i) for i in range(9)]
    assert [one.pairs_of(i) for i in range(9)] != [other.pairs_of(i) for i in range(9)]
    assert one.hash == same.hash != other.hash
    moved = tmp_path / "moved"
    moved.mkdir()
    for ending in ("bin", "idx"):
        name = f"organic_text_document.{ending}"
        (moved / name).write_bytes((tmp_path / name).read_bytes())
    assert windows(moved / "organic", path, seed=1).hash == one.hash


def test_it_can_be_pickled(corpus, tmp_path):
    built = windows(corpus, pairs_file(tmp_path, [(0, 2)]))
    assert torch.equal(pickle.loads(pickle.dumps(built))[0]["tokens"], built[0]["tokens"])


@pytest.mark.parametrize(
    ("pairs", "message"),
    [([(0, 4)], "holds document 4"), ([(-1, 0)], "document -1"), ([], "empty"), ([(3, 3)], "none")],
)
def test_wrong_pairs_are_refused(corpus, tmp_path, pairs, message):
    with pytest.raises(DataError, match=message):
        windows(corpus, pairs_file(tmp_path, pairs))


def test_missing_and_foreign_files_are_refused(corpus, tmp_path):
    with pytest.raises(DataError, match="no such pairs file"):
        windows(corpus, tmp_path / "nowhere.parquet")
    (tmp_path / "text.parquet").write_text("not parquet")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    for name in ("text.parquet", "other.parquet"):
        with pytest.raises(DataError, match="columns d1 and d2"):
            windows(corpus, tmp_path / name)


def test_a_separator_that_is_eos_is_refused(corpus, tmp_path):
    path = pairs_file(tmp_path, [(0, 2)])
    with pytest.raises(ConfigError, match="must differ"):
        PairWindows(corpus, path, sequence_length=8, eos_id=EOS, separator_id=EOS)


def test_documents_without_eos_are_refused(tmp_path, write_corpus):
    corpus = write_corpus(tmp_path / "raw", [[1, 2], [3, 4]])
    with pytest.raises(DataError, match="not with EOS"):
        windows(corpus, pairs_file(tmp_path, [(0, 1)]))[0]


def text_of(documents, first, second, bos=None):
    """A pair's tokens, by the book."""
    second_document = documents[second][0 if bos is None else 1 :]
    return (*documents[first][:-1], SEPARATOR, *second_document)


def pieces_of(sample, size):
    """(first input, texts up to the first EOS) of each piece that `cu_seqlens` names."""
    borders = [b for b in sample["cu_seqlens"].tolist() if b < size]
    text = [*sample["tokens"].tolist(), int(sample["labels"][-1])]
    ends = [*borders[1:], size + 1]
    pieces = [(begin, text[begin:end]) for begin, end in zip(borders, ends, strict=True)]
    return [(begin, tuple(p[: p.index(EOS) + 1]), p[p.index(EOS) + 1 :]) for begin, p in pieces]


@pytest.fixture
def many(tmp_path, write_corpus):
    """Documents of 1 to 12 tokens, all different; name -> (prefix, documents, BOS)."""
    lengths = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 2, 3, 4]
    tokens = iter(range(100, 1000))
    plain = [[*(next(tokens) for _ in range(n - 1)), EOS] for n in lengths]
    begun = [[7, *document] for document in plain]
    corpora = {}
    for name, documents, bos in (("plain", plain, None), ("begun", begun, 7)):
        prefix = write_corpus(tmp_path / name, documents)
        count = sum(map(len, documents))
        if bos is not None:
            write_info(prefix, count, len(documents), bos)
        corpora[name] = (prefix, documents, bos)
    return corpora


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pairs=st.lists(st.tuples(st.integers(0, 14), st.integers(0, 14)), min_size=1, max_size=40),
    size=st.integers(4, 40),
    seed=st.integers(0, 3),
    name=st.sampled_from(["plain", "begun"]),
    layout=st.sampled_from(["packed", "one"]),
)
def test_every_pair_is_served_whole_once_an_epoch_and_loss_is_on_its_second_document(
    many, tmp_path, pairs, size, seed, name, layout
):
    corpus, documents, bos = many[name]
    texts = [text_of(documents, *pair, bos) for pair in pairs]
    fitting = Counter(text for text in texts if len(text) <= size)
    assume(fitting)
    path = pairs_file(tmp_path, pairs)
    both = {"pairs_per_window": layout, "attention": "document", "seed": seed}
    count = windows(corpus, path, size, **both).windows
    built = windows(corpus, path, size, samples=2 * count, **both)
    assert (built.pairs, built.dropped) == (fitting.total(), len(pairs) - fitting.total())
    inputs = 0
    for epoch in range(2):
        served = Counter()
        for number in range(epoch * count, (epoch + 1) * count):
            sample = built[number]
            assert torch.equal(sample["tokens"][1:], sample["labels"][:-1])
            loss, positions = sample["loss_mask"].tolist(), sample["position_ids"].tolist()
            expected_loss, expected_positions, in_pairs = [0.0] * size, [], []
            for begin, text, rest in pieces_of(sample, size):
                length = min(len(text) + len(rest), size - begin)
                expected_positions += range(length)
                if SEPARATOR not in text:  # the padding, at the end
                    assert {*text, *rest} == {EOS}
                    assert begin + length == size
                    continue
                # Only the label after a window's last input may be there beside the pair.
                assert len(rest) <= (begin + len(text) == size)
                served[text] += 1
                in_pairs.append(text)
                inputs += len(text) - 1
                separator = begin + text.index(SEPARATOR)
                for place in range(separator, begin + len(text) - 1):
                    expected_loss[place] = 1.0
            assert loss == expected_loss
            assert positions == expected_positions
            borders = sample["cu_seqlens"].tolist()
            assert sample["max_seqlen"] == max(np.diff(borders))
            assert in_pairs == [text_of(documents, *p, bos) for p in built.pairs_of(number)]
        assert served == fitting
    assert built.padding_share == pytest.approx(1 - inputs / (2 * count * size))


def test_packed_pairs_token_by_token(corpus, tmp_path):
    path = pairs_file(tmp_path, [(0, 1), (1, 0)])
    sample = windows(corpus, path, 10, pairs_per_window="packed", seed=0)[0]
    # text: 21 | 99 | 11 12 | EOS, then 11 12 | 99 | 21 | EOS, padded to 11
    assert sample["tokens"].tolist() == [21, 99, 11, 12, 0, 11, 12, 99, 21, 0]
    assert sample["labels"].tolist() == [99, 11, 12, 0, 11, 12, 99, 21, 0, 0]
    assert sample["loss_mask"].tolist() == [0, 1, 1, 1, 0, 0, 0, 1, 1, 0]
    assert sample["position_ids"].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]
    assert sample["cu_seqlens"].tolist() == [0, 5] + [10] * 9
    assert sample["max_seqlen"] == 5


def test_the_last_eos_of_a_full_window_is_a_label_only(corpus, tmp_path):
    path = pairs_file(tmp_path, [(0, 1), (1, 0)])
    built = windows(corpus, path, 9, pairs_per_window="packed")
    assert built.windows == 1
    assert built[0]["loss_mask"].tolist()[-1] == 1
    assert built[0]["labels"].tolist()[-1] == EOS
    assert built.padding_share == pytest.approx(1 / 9)  # the first pair's EOS predicts nothing
    assert windows(corpus, path, 8, pairs_per_window="packed").windows == 2


def test_packed_pairs_may_see_each_other_where_asked(corpus, tmp_path):
    path = pairs_file(tmp_path, [(0, 1), (1, 0)])
    packed = {"pairs_per_window": "packed", "seed": 1}
    apart = windows(corpus, path, 10, **packed)[0]
    together = windows(corpus, path, 10, **packed, attention="cross")[0]
    assert together["position_ids"].tolist() == list(range(10))
    assert apart.keys() - together.keys() == {"cu_seqlens", "max_seqlen"}
    for name in ("tokens", "labels", "loss_mask"):
        assert torch.equal(apart[name], together[name])


def test_the_fields_are_those_of_blended_streams(corpus, tmp_path):
    plan = solve(
        BlendConfig.model_validate(
            {
                "sequence_length": 8,
                "global_batch_size": 1,
                "attention": "document",
                "corpora": {"organic": {"epochs": 1}},
            }
        ),
        {"organic": corpus_size(corpus)},
    )
    blended = BlendedStreams(plan, {"organic": corpus})[0]
    packed = windows(corpus, pairs_file(tmp_path, [(0, 1)]), pairs_per_window="packed")[0]

    def form(sample):
        return {k: (v.dtype, v.shape) if torch.is_tensor(v) else type(v) for k, v in sample.items()}

    assert form(packed) == form(blended)


def drawn_pairs(count, seed=0):
    return np.random.default_rng(seed).integers(0, 15, (count, 2)).tolist()


def test_windows_are_the_same_every_epoch_in_an_order_of_its_own(many, tmp_path):
    path = pairs_file(tmp_path, drawn_pairs(300))
    count = windows(many["plain"][0], path, 40, pairs_per_window="packed").windows
    built = windows(many["plain"][0], path, 40, pairs_per_window="packed", samples=3 * count)
    served = [tuple(built.pairs_of(i)) for i in range(3 * count)]
    epochs = [served[i : i + count] for i in range(0, 3 * count, count)]
    assert epochs[0] != epochs[1] != epochs[2]
    assert Counter(epochs[0]) == Counter(epochs[1]) == Counter(epochs[2])
    assert sum(len(window) for window in epochs[0]) == built.pairs == 300


def test_the_seed_draws_which_pairs_meet(many, tmp_path):
    path = pairs_file(tmp_path, drawn_pairs(300))
    first, same, other = (
        windows(many["plain"][0], path, 40, pairs_per_window="packed", seed=seed)
        for seed in (1, 1, 2)
    )
    served = [Counter(tuple(b.pairs_of(i)) for i in range(b.windows)) for b in (first, same, other)]
    assert served[0] == served[1] != served[2]
    assert first.windows == other.windows


@pytest.mark.parametrize("layout", ["one", "packed"])
def test_samples_do_not_depend_on_access_process_or_workers(many, tmp_path, layout):
    path = pairs_file(tmp_path, drawn_pairs(60))
    built = windows(many["begun"][0], path, 40, pairs_per_window=layout, attention="document")
    forward = [built[i] for i in range(len(built))]
    again = pickle.loads(pickle.dumps(built))
    backward = [again[i] for i in reversed(range(len(built)))][::-1]
    loaded = list(DataLoader(built, batch_size=None, num_workers=2))
    assert len(loaded) == len(forward)
    for one, two, three in zip(forward, backward, loaded, strict=True):
        for name, value in one.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(two[name]))
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(three[name]))


def test_little_goes_to_another_process(many, tmp_path):
    built = windows(
        many["plain"][0],
        pairs_file(tmp_path, drawn_pairs(20_000)),
        40,
        pairs_per_window="packed",
    )
    assert len(pickle.dumps(built)) < 8 * built.pairs + 8 * built.windows + 4096


def test_the_hash_of_one_pair_a_window_is_what_it_was_and_each_setting_has_its_own(
    corpus, tmp_path
):
    path = pairs_file(tmp_path, [(0, 2), (1, 0)])
    before = {
        "corpus": corpus_size(corpus).content_hash,
        "pairs": hash_file(path),
        "ids": [EOS, SEPARATOR],
        "sequence_length": 8,
        "seed": 3,
    }
    hashes = [
        windows(corpus, path, seed=3, **chosen).hash
        for chosen in (
            {},
            {"attention": "document"},
            {"pairs_per_window": "packed"},
            {"pairs_per_window": "packed", "attention": "cross"},
        )
    ]
    assert hashes[0] == hash_json(before)
    assert len(set(hashes)) == 4


@pytest.mark.parametrize("chosen", [{"pairs_per_window": "many"}, {"attention": "pair"}])
def test_unknown_settings_are_refused(corpus, tmp_path, chosen):
    with pytest.raises(ConfigError, match="is not known"):
        windows(corpus, pairs_file(tmp_path, [(0, 2)]), **chosen)
