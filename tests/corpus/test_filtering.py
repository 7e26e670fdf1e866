"""Import with every filter: what happens to each row, and that the counts add up."""

import collections
import json
import tempfile
import types
from pathlib import Path

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_synth.config import ConfigError, parse_config
from megatron_synth.corpus import (
    Document,
    ImportConfig,
    filtering,
    import_corpus,
    read_documents,
    write_documents,
)
from megatron_synth.corpus.blocks import document_blocks
from megatron_synth.corpus.filtering import REASONS
from megatron_synth.tokens import Tokenizer, train_tokenizer

QUERY = "which of these planets turns most slowly around its own axis seen from the sun"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([f"{QUERY} alpha beta gamma"], 300, folder)
    return folder


@pytest.fixture
def queries(tmp_path):
    path = tmp_path / "quiz.jsonl"
    path.write_text(json.dumps({"id": "q1", "query": QUERY}))
    return path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(tmp_path, texts, **config):
    path, out = tmp_path / "in.jsonl", tmp_path / "out"
    write_documents(path, [Document(f"d{k}", text) for k, text in enumerate(texts)])
    settings = ImportConfig(input=str(path), **{"min_characters": 1, **config})
    counts = import_corpus(settings, out)
    kept = [(d.id, d.text) for d in read_documents(out / "documents.jsonl.zst")]
    return counts, kept, lines(out / "dropped.jsonl")


def distinct(number):
    return (
        " ".join(f"{a}{b}{'xyz'[number % 3]}{number:b}" for a in "klmn" for b in "aeiou")
        .replace("0", "o")
        .replace("1", "i")
    )


def test_a_dropped_document_is_listed_with_its_reason_and_what_it_repeats(tmp_path, queries):
    base = distinct(1)
    texts = [
        base,
        "x",
        base,
        base.replace(base.split()[0], "other"),
        f"It asked: {QUERY}?",
        distinct(2),
    ]
    counts, kept, dropped = run(
        tmp_path,
        texts,
        min_characters=3,
        near_duplicates={"threshold": 0.5},
        decontaminate={"queries": [str(queries)]},
    )
    assert [identity for identity, _ in kept] == ["d0", "d5"]
    assert dropped == [
        {"id": "d1", "reason": "too_short"},
        {"id": "d2", "reason": "duplicates", "duplicate_of": "d0"},
        {"id": "d3", "reason": "near_duplicates", "duplicate_of": "d0"},
        {"id": "d4", "reason": "contaminated"},
    ]
    assert {name: counts[name] for name in REASONS if counts[name]} == {
        "too_short": 1,
        "duplicates": 1,
        "near_duplicates": 1,
        "contaminated": 1,
    }
    assert counts["contaminated_by"] == {"quiz": 1}
    met = lines(tmp_path / "out" / "contaminated.jsonl")
    assert met == [
        {"id": "d4", "benchmark": "quiz", "query": "q1", "action": "drop", "reason": "contaminated"}
    ]


def test_a_cut_document_stays_without_the_passage_and_is_filtered_again(tmp_path, queries):
    texts = [
        f"Here it begins. {QUERY}? Here it ends.",
        f"Here it begins. {QUERY.upper()}? Here it ends.",  # equal to the first, once cut
        f"a {QUERY}",  # too short, once cut
    ]
    counts, kept, dropped = run(
        tmp_path,
        texts,
        min_characters=10,
        decontaminate={"queries": [str(queries)], "action": "cut"},
    )
    assert kept == [("d0", "Here it begins.\n\n? Here it ends.")]
    assert counts["cut"] == 3
    assert dropped == [
        {"id": "d1", "reason": "duplicates", "duplicate_of": "d0"},
        {"id": "d2", "reason": "too_short"},
    ]


def test_a_cut_that_joins_two_halves_of_another_passage_is_followed_by_a_second(tmp_path, queries):
    words = QUERY.split()
    nested = " ".join([*words[:7], QUERY, *words[7:]])
    _, kept, _ = run(
        tmp_path,
        [f"Start of it. {nested}. End of it."],
        decontaminate={"queries": [str(queries)], "action": "cut"},
    )
    assert kept == [("d0", "Start of it.\n\n. End of it.")]


def test_lengths_in_tokens_are_those_of_the_tokenizer(tmp_path, tokenizer):
    texts = [distinct(1)[:n] for n in (5, 30, 60)]
    sizes = [len(ids) for ids in Tokenizer.load(tokenizer).encode_batch(texts)]
    counts, kept, dropped = run(
        tmp_path,
        texts,
        normalise=(),
        tokenizer=str(tokenizer),
        min_tokens=sizes[0] + 1,
        max_tokens=sizes[2] - 1,
    )
    assert kept == [("d1", texts[1])]
    assert [row["reason"] for row in dropped] == ["too_few_tokens", "too_many_tokens"]
    assert counts["tokens"] == sizes[1]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"min_tokens": 5}, "need a tokenizer"),
        ({"max_tokens": 5}, "need a tokenizer"),
        ({"min_characters": 300, "max_characters": 299}, "min_characters is 300, over"),
        ({"tokenizer": "t", "min_tokens": 3, "max_tokens": 2}, "min_tokens is 3, over"),
        ({"keep_duplicates": True, "near_duplicates": {}}, "keep_duplicates is true, but"),
        ({"near_duplicates": {"threshold": 1.5}}, r"near_duplicates\.threshold"),
        ({"near_duplicates": {"permutation": 64}}, "did you mean 'permutations'"),
    ],
)
def test_settings_that_contradict_each_other_are_config_errors(config, words):
    with pytest.raises(ConfigError, match=words):
        parse_config(config, ImportConfig, where="test")


def test_what_a_dropped_document_says_does_not_drop_others(tmp_path, queries):
    """The contaminated document is gone, so its near-duplicate without the query must stay."""
    base = " ".join(distinct(k) for k in range(5))
    counts, kept, _ = run(
        tmp_path,
        [f"{base} {QUERY}", base],
        near_duplicates={"threshold": 0.5},
        decontaminate={"queries": [str(queries)]},
    )
    assert counts["contaminated"] == 1
    assert kept == [("d1", base)]


def test_the_lists_name_documents_as_the_corpus_does(tmp_path, queries):
    rows = [f"{distinct(k)} {QUERY}" for k in range(2)] + [QUERY]
    path = tmp_path / "in.jsonl"
    write_documents(path, [Document("a", text) for text in rows])
    decontaminate = {"queries": [str(queries)], "action": "cut"}
    import_corpus(
        ImportConfig(input=str(path), min_characters=1, decontaminate=decontaminate),
        tmp_path / "out",
    )
    met = lines(tmp_path / "out" / "contaminated.jsonl")
    assert [(row["id"], row.get("reason")) for row in met] == [
        ("a", None),
        ("a#2", None),
        ("a", "too_short"),
    ]


def test_ids_that_repeat_cost_no_more_than_others(tmp_path, monkeypatch):
    hashed = collections.Counter()

    def digest(data):
        hashed.update(n=1)
        return xxhash.xxh3_128_digest(data)

    monkeypatch.setattr(filtering, "xxhash", types.SimpleNamespace(xxh3_128_digest=digest))
    rows = [Document("a#3", "x")] + [Document("a", f"text {k}") for k in range(300)]
    write_documents(tmp_path / "in.jsonl", rows)
    import_corpus(
        ImportConfig(input=str(tmp_path / "in.jsonl"), min_characters=1), tmp_path / "out"
    )
    found = [d.id for d in read_documents(tmp_path / "out" / "documents.jsonl.zst")]
    assert found == ["a#3", "a", "a#2", *(f"a#{k}" for k in range(4, 302))]
    assert hashed["n"] < 4 * len(rows)


def test_blocks_are_bounded_in_documents_and_characters():
    documents = [Document(str(k), "x" * (k % 5) * 200_000) for k in range(1000)]
    blocks = list(document_blocks(documents))
    assert [d for block in blocks for d in block] == documents
    assert max(map(len, blocks)) <= 256
    assert max(sum(len(d.text) for d in block[:-1]) for block in blocks) < 1 << 20
    assert len(list(document_blocks([Document("a", "")] * 257))) == 2


ROWS = st.lists(
    st.one_of(
        st.integers(0, 12).map(lambda k: json.dumps({"id": f"n{k}", "text": distinct(k)})),
        st.integers(0, 3).map(lambda k: json.dumps({"text": f"{QUERY} {distinct(k)}"})),
        st.integers(1, 8).map(lambda k: json.dumps({"text": "s" * k})),
        st.sampled_from(["{", '{"text": 1}', '{"id": "no"}', '{"text": "\\u0000"}', "[]"]),
    ),
    max_size=40,
)


@settings(max_examples=60)
@given(rows=ROWS, action=st.sampled_from(["drop", "cut"]), most=st.one_of(st.none(), st.just(5)))
def test_every_row_is_kept_or_dropped_with_a_reason_or_in_quarantine(rows, action, most):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "quiz.jsonl").write_text(json.dumps({"query": QUERY}))
        first = json.dumps({"id": "first", "text": distinct(99)})  # so that something is left
        (folder / "in.jsonl").write_text("\n".join([first, *rows]))
        config = ImportConfig(
            input=str(folder / "in.jsonl"),
            min_characters=5,
            quarantine_limit=1,
            max_documents=most,
            near_duplicates={},
            decontaminate={"queries": [str(folder / "quiz.jsonl")], "action": action},
        )
        counts = import_corpus(config, folder / "out")
        kept = list(read_documents(folder / "out" / "documents.jsonl.zst"))
        dropped = lines(folder / "out" / "dropped.jsonl")
        bad = lines(folder / "out" / "quarantine.jsonl")
    assert len(kept) + len(dropped) + len(bad) == counts["rows"] == len(rows) + 1
    reasons = collections.Counter(row["reason"] for row in dropped)
    assert reasons == collections.Counter({r: counts[r] for r in REASONS if counts[r]})
    assert (len(kept), len(bad)) == (counts["documents"], counts["quarantined"])
    assert len({d.id for d in kept}) == len({d.text for d in kept}) == len(kept)
    assert {row["duplicate_of"] for row in dropped if "duplicate_of" in row} <= {d.id for d in kept}
    assert not any(QUERY in d.text for d in kept)
    assert counts["characters"] == sum(len(d.text) for d in kept)
    assert most is None or len(kept) <= most


def test_the_folder_of_an_import_reads_as_its_documents_alone(tmp_path, queries):
    _, kept, dropped = run(
        tmp_path,
        [distinct(1), distinct(1), QUERY],
        decontaminate={"queries": [str(queries)]},
    )
    assert len(dropped) == 2
    assert [(d.id, d.text) for d in read_documents(tmp_path / "out")] == kept
    (tmp_path / "mine").mkdir()
    write_documents(tmp_path / "mine" / "dropped.jsonl", [Document("a", "b")])
    assert [d.id for d in read_documents(tmp_path / "mine")] == ["a"]
