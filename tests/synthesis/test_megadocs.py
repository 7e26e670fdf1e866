"""Megadocs: what is in them, in which order, with which provenance, and what is refused."""

import random
import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import honest_text

from megatron_synth.config import DataError
from megatron_synth.corpus import Document, read_documents, write_documents
from megatron_synth.corpus.document import PART_BREAK
from megatron_synth.synthesis.card import CARD
from megatron_synth.synthesis.megadocs import MEGADOCS, MegadocsConfig, build_megadocs
from megatron_synth.synthesis.pieces import CUT, cut_points

G = 4
ORGANIC = [Document(f"doc-{n}", honest_text(f"organic {n}", 40)) for n in range(12)]


def rephrased(document, generation, method="rephrase_hq"):
    return Document(
        f"{document.id}/{method}-0-{generation}",
        honest_text(f"{document.id} {method} {generation}", 20),
        source_id=document.id,
        method=method,
        generation=generation,
        round=0,
        generator="small@1",
        prompt=f"{method}@abc",
        token_counts={"text": 25},
        metadata={"request": generation},
    )


GENERATED = [rephrased(document, g) for document in ORGANIC for g in range(G)]


def build(tmp_path, organic=ORGANIC, generated=GENERATED, **settings):
    write_documents(tmp_path / "organic.jsonl", organic)
    write_documents(tmp_path / "generated.jsonl.zst", generated)
    config = MegadocsConfig.model_validate({"kind": "stitch", **settings})
    inputs = (tmp_path / "organic.jsonl", tmp_path / "generated.jsonl.zst")
    counts = build_megadocs(config, *inputs, tmp_path / "out")
    return list(read_documents(tmp_path / "out" / MEGADOCS)), counts


def test_a_stitched_document_is_its_generations_in_some_order_and_then_itself(tmp_path):
    megadocs, counts = build(tmp_path)
    assert [megadoc.source_id for megadoc in megadocs] == [document.id for document in ORGANIC]
    orders = set()
    for megadoc, document in zip(megadocs, ORGANIC, strict=True):
        own = [rephrased(document, g) for g in range(G)]
        assert megadoc.parts[-1] == document.text
        assert sorted(megadoc.parts[:-1]) == sorted(member.text for member in own)
        assert megadoc.text == PART_BREAK.join(megadoc.parts)
        texts = {member.id: member.text for member in own}
        assert [texts[name] for name in megadoc.metadata["members"]] == list(megadoc.parts[:-1])
        orders.add(tuple(megadoc.metadata["requests"]))
    assert len(orders) > 5
    assert counts == {
        "documents": 12,
        "characters": sum(len(megadoc.text) for megadoc in megadocs),
        "members": 48,
        "member_tokens": 48 * 25,
        "made_by": {
            "methods": ["rephrase_hq"],
            "generators": ["small@1"],
            "prompts": ["rephrase_hq@abc"],
        },
        "unknown_sources": 0,
        "without_generations": 0,
        "by_generations": {"4": 12},
    }


def test_the_card_says_what_they_are_and_who_wrote_what_is_in_them(tmp_path):
    build(tmp_path, seed=3, licence="cc-by-4.0")
    text = (tmp_path / "out" / CARD).read_text(encoding="utf-8")
    _, header, rest = text.split("---\n", 2)
    found = yaml.safe_load(header)
    assert (found["license"], found["size_categories"]) == ("cc-by-4.0", ["n<1K"])
    assert found["configs"][0]["data_files"] == MEGADOCS
    assert found["tags"] == ["synthetic", "pretraining", "megadocs", "stitch"]
    for fact in ("stands: last", "order: 3", "Megadocs: 12", "12 with 4", "small@1", "1,200"):
        assert fact in rest
    assert "rephrase_hq@abc" in rest


def test_the_provenance_names_where_everything_came_from(tmp_path):
    other = Document("x", "some other text", source_id="doc-0", method="faq", generator="big@2")
    megadocs, _ = build(tmp_path, generated=[*GENERATED, other], seed=5)
    assert megadocs[1].id == "doc-1/stitch"
    assert (megadocs[1].method, megadocs[1].generator) == ("stitch", "small@1")
    assert (megadocs[1].seed, megadocs[1].round) == (5, 0)
    assert megadocs[1].metadata["generations"] == G
    assert megadocs[0].generator is None
    assert megadocs[0].metadata["generators"] == ["big@2", "small@1"]
    assert megadocs[0].metadata["methods"] == ["faq", "rephrase_hq"]
    assert megadocs[0].metadata["generations"] == G + 1
    assert "requests" not in megadocs[0].metadata  # one of them does not say it


@pytest.mark.parametrize(("real", "place"), [("first", 0), ("last", -1), ("none", None)])
def test_the_document_itself_stands_where_it_is_asked_for(tmp_path, real, place):
    (megadoc, *_), _ = build(tmp_path, real=real)
    assert len(megadoc.parts) == G + (place is not None)
    if place is None:
        assert ORGANIC[0].text not in megadoc.parts
    else:
        assert megadoc.parts[place] == ORGANIC[0].text


def test_the_order_follows_seed_and_document_whatever_the_order_of_the_inputs(tmp_path):
    shuffled, few = list(GENERATED), ORGANIC[3:5]
    random.Random(1).shuffle(shuffled)
    whole, _ = build(tmp_path)
    again, _ = build(tmp_path, generated=shuffled)
    assert whole == again
    part, counts = build(tmp_path, organic=few, unknown_limit=1)
    assert part == whole[3:5]
    assert counts["unknown_sources"] == 10 * G
    other, _ = build(tmp_path, seed=1)
    assert [m.parts[-1] for m in other] == [m.parts[-1] for m in whole]
    assert [m.parts for m in other] != [m.parts for m in whole]


def test_a_document_without_generations_stands_alone(tmp_path):
    generated = [d for d in GENERATED if d.source_id != "doc-2"][:-1]
    megadocs, counts = build(tmp_path, generated=generated)
    assert megadocs[2].parts == (ORGANIC[2].text,)
    assert megadocs[2].text == ORGANIC[2].text
    assert (counts["without_generations"], counts["documents"]) == (1, 12)
    assert counts["by_generations"] == {"0": 1, "3": 1, "4": 10}
    megadocs, counts = build(tmp_path, generated=generated, real="none")
    assert "doc-2" not in {megadoc.source_id for megadoc in megadocs}
    assert (counts["without_generations"], counts["documents"]) == (1, 11)


@pytest.mark.parametrize(
    ("organic", "generated", "message"),
    [
        ([*ORGANIC, ORGANIC[3]], GENERATED, "1 organic documents have an id that another one has"),
        (ORGANIC, [*GENERATED, GENERATED[0]], "two generated documents of 'doc-0' have the same"),
        (ORGANIC, [*GENERATED, Document("x", "text")], "'x' names no source_id"),
        (ORGANIC[1:], GENERATED, "4 of 48 generated documents come from a source that is not"),
        ([], GENERATED, "there are no documents with generations"),
    ],
)
def test_inputs_that_do_not_belong_together_are_refused_and_nothing_is_left(
    tmp_path, organic, generated, message
):
    with pytest.raises(DataError, match=re.escape(message)):
        build(tmp_path, organic=organic, generated=generated)
    assert not list((tmp_path / "out").iterdir())


def thoughts(document, tokenizer, generations):
    cuts = cut_points(document.text, tokenizer, generations + 1)
    return [
        Document(
            f"{document.id}/latent_thoughts-0-{g}",
            f"thought {g} of {document.id}",
            source_id=document.id,
            method="latent_thoughts",
            generation=g,
            metadata={CUT: cut, "splits": generations, "request": g},
        )
        for g, cut in enumerate(cuts)
    ]


THOUGHT = re.compile(r"<think>\n(.*?)\n</think>", re.DOTALL)


def test_a_stretched_document_has_its_rationales_between_token_equal_pieces(tmp_path, tokenizer):
    generated = [t for document in ORGANIC for t in thoughts(document, tokenizer, 3)]
    megadocs, counts = build(tmp_path, generated=generated[::-1], kind="stretch")
    for megadoc, document in zip(megadocs, ORGANIC, strict=True):
        assert megadoc.parts is None
        assert THOUGHT.sub("", megadoc.text) == document.text
        assert THOUGHT.findall(megadoc.text) == [f"thought {g} of {document.id}" for g in range(3)]
        pieces = THOUGHT.split(megadoc.text)[::2]
        lengths = [len(tokenizer.encode(piece)) for piece in pieces]
        assert max(lengths) - min(lengths) <= 3
        assert megadoc.metadata["requests"] == [0, 1, 2]
        assert (megadoc.id, megadoc.method) == (f"{document.id}/stretch", "stretch")
    assert counts["missing_rationales"] == 0


def test_a_missing_rationale_joins_its_pieces_and_is_counted(tmp_path, tokenizer):
    generated = [t for document in ORGANIC for t in thoughts(document, tokenizer, 3)]
    megadocs, counts = build(tmp_path, generated=generated[1:-3], kind="stretch")
    assert THOUGHT.findall(megadocs[0].text) == ["thought 1 of doc-0", "thought 2 of doc-0"]
    assert THOUGHT.sub("", megadocs[0].text) == ORGANIC[0].text
    assert megadocs[-1].text == ORGANIC[-1].text
    assert (counts["missing_rationales"], counts["without_generations"]) == (1, 1)


def test_tags_inside_a_rationale_cannot_end_it(tmp_path):
    rationale = Document(
        "t", "a </think> b <think> c", source_id="doc-0", metadata={CUT: 5, "splits": 1}
    )
    (megadoc, *_), counts = build(tmp_path, generated=[rationale], kind="stretch")
    assert THOUGHT.findall(megadoc.text) == ["a  b  c"]
    assert counts["tags_removed"] == 2


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "says not where in its source it stands"),
        ({CUT: "5"}, "says not where"),
        ({CUT: True}, "says not where"),
        ({CUT: 0}, "stands at character 0 of"),
        ({CUT: 10_000}, "stands at character 10,000 of a document of"),
    ],
)
def test_a_rationale_without_a_place_in_its_document_is_refused(tmp_path, metadata, message):
    rationale = Document("t", "thought", source_id="doc-0", metadata=metadata)
    with pytest.raises(DataError, match=re.escape(message)):
        build(tmp_path, generated=[rationale], kind="stretch")


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.tuples(TEXTS, st.lists(TEXTS, max_size=4)), min_size=1, max_size=5))
def test_every_text_is_in_exactly_one_megadoc(tmp_path_factory, texts):
    organic = [Document(f"d{n}", text) for n, (text, _) in enumerate(texts)]
    generated = [
        Document(f"d{n}-{g}", text, source_id=f"d{n}")
        for n, (_, own) in enumerate(texts)
        for g, text in enumerate(own)
    ]
    megadocs, counts = build(tmp_path_factory.mktemp("m"), organic=organic, generated=generated)
    for megadoc, (text, own) in zip(megadocs, texts, strict=True):
        assert megadoc.parts[-1] == text
        assert sorted(megadoc.parts[:-1]) == sorted(own)
    assert counts["members"] == len(generated)
