"""Every filter drops what it is for, with its reason, and nothing else."""

import os
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import honest_text

from megatron_synth.config import DataError
from megatron_synth.corpus import Document, read_documents, write_documents
from megatron_synth.synthesis import (
    REASONS,
    FilterConfig,
    SynthesisConfig,
    drop_reason,
)
from megatron_synth.synthesis.filters import (
    FilterContext,
    copied_share,
    drop_reasons,
    packed_tokens,
    read_held_out,
)
from megatron_synth.synthesis.phrases import (
    begins_with_refusal,
    prompt_phrases,
    repeats_prompt,
)
from megatron_synth.synthesis.prompts import prompt_names, read_prompt

CONFIG = FilterConfig()
SOURCE = honest_text("source")


def make(text: str, *, tokens: int = 60, finish: str = "stop") -> Document:
    return Document("d", text, finish_reason=finish, token_counts={"text": tokens})


def test_an_honest_document_is_kept():
    assert drop_reason(CONFIG, make(honest_text("a")), SOURCE) is None


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (make("", finish="error", tokens=0), "failed"),
        (make(" \n\t", tokens=3), "empty"),
        (make(honest_text("a"), finish="length"), "unfinished"),
        (make(honest_text("a"), tokens=49), "too_short"),
        (make(honest_text("a") + "\0"), "nul_character"),
        (make("I'm sorry, but I can't do that. " + honest_text("a")), "refusal"),
        (make(honest_text("a", 20) + " then " + honest_text("a", 20)), "repeated_shingle"),
        (make(SOURCE), "copies_source"),
        (make(honest_text("a", 15) + " " + honest_text("source", 80)), "copies_source"),
    ],
)
def test_each_reason_is_found(document, reason):
    assert drop_reason(CONFIG, document, SOURCE) == reason
    assert reason in REASONS


@pytest.mark.parametrize("failure", ["unparseable", "context_too_long", "refused_by_engine"])
def test_a_document_without_an_answer_says_why(failure):
    document = Document("d", "", finish_reason="error", metadata={"failure": failure})
    assert drop_reason(CONFIG, document, SOURCE) == failure
    assert failure in REASONS


@pytest.mark.parametrize(
    ("config", "document"),
    [
        (FilterConfig(finished=False), make(honest_text("a"), finish="length")),
        (FilterConfig(min_tokens=49), make(honest_text("a"), tokens=49)),
        (
            FilterConfig(repeated_shingle=False),
            make(honest_text("a", 20) + " then " + honest_text("a", 20)),
        ),
        (FilterConfig(max_copied_share=1.0), make(SOURCE)),
    ],
)
def test_each_filter_can_be_set(config, document):
    assert drop_reason(CONFIG, document, SOURCE) is not None
    assert drop_reason(config, document, SOURCE) is None


WORDS = st.sampled_from(["", "one", "two words", *(honest_text(seed, 20) for seed in "abc")])
TEXTS = st.lists(WORDS, max_size=4).map(" ".join)
CONFIGS = st.builds(
    FilterConfig,
    repeated_shingle=st.booleans(),
    max_copied_share=st.sampled_from([0.0, 0.3, 0.6, 1.0]),
    language=st.booleans(),
)


@given(CONFIGS, st.lists(st.tuples(TEXTS, TEXTS), max_size=6), st.data())
def test_a_document_has_the_same_reason_alone_and_in_a_batch(config, pairs, data):
    finishes = [data.draw(st.sampled_from(["stop", "length"])) for _ in pairs]
    documents = [make(text, finish=f) for (text, _), f in zip(pairs, finishes, strict=True)]
    sources = [source for _, source in pairs]
    alone = [drop_reason(config, *each) for each in zip(documents, sources, strict=True)]
    assert drop_reasons(config, documents, sources) == alone


@given(
    st.lists(
        st.sampled_from(
            ["Write", "wRITE", "the", "WR\u0130TE", "thin\u212a", "think", "çà", "ÇÀ", "\n", "it"]
        ),
        max_size=8,
    )
)
def test_a_phrase_of_the_prompt_is_found_whatever_its_case(words):
    text, body = " ".join(words), "Write the think çà.\nwrite it çà"
    plain = " ".join(text.lower().split())
    meant = any(phrase in plain for phrase in ("write the think çà.", "write it çà"))
    assert repeats_prompt(text, "", body, 3) == meant


@pytest.mark.parametrize("spelling", ["<|endoftext|>", "</s>", "[INST]", "<｜end▁of▁sentence｜>"])
def test_the_spelling_of_a_control_token_is_data_unless_it_is_to_be_dropped(spelling):
    document = make(f"{honest_text('a')} {spelling} <|separator|>")
    assert drop_reason(CONFIG, document, SOURCE) is None
    assert drop_reason(FilterConfig(special_spellings=True), document, SOURCE) == "special_spelling"
    arithmetic = make(f"{honest_text('a')} if a<b or b>c: x[i] |= y")
    assert drop_reason(FilterConfig(special_spellings=True), arithmetic, SOURCE) is None


@pytest.mark.parametrize(
    "beginning",
    [
        "I'm sorry, but I can't help with that.",
        "Sorry, I cannot assist with this request.",
        "  I apologize, but I cannot provide",
        "I can’t help you\nwith this",
        "As an AI language model, I do not have",
        "Unfortunately, I am unable to rewrite this text",
        "Please provide the document you would like me to rewrite.",
        "It seems that the document you provided is empty.",
    ],
)
def test_a_refusal_is_one_at_the_beginning_only(beginning):
    assert begins_with_refusal(beginning)
    assert not begins_with_refusal(f"The model answered: {beginning}")
    assert not begins_with_refusal(f'"{beginning}", she said.')
    refusal = make(f"{beginning} {honest_text('a')}")
    assert drop_reason(FilterConfig(refusals=False), refusal, SOURCE) is None


@pytest.mark.parametrize(
    "beginning",
    [
        "I can't help but wonder what became of it",
        "As an artist, I paint",
        "Please provide feedback",
        "Unfortunately, the war was not over",
        "I do not like green eggs",
        "It seems the king was not amused",
    ],
)
def test_ordinary_text_is_no_refusal(beginning):
    assert not begins_with_refusal(beginning)


def test_no_document_of_the_real_corpus_is_a_refusal(real_data):
    documents = list(read_documents(real_data / "corpus" / "gov_web.jsonl.gz"))
    assert len(documents) > 2000
    assert not [d.id for d in documents if begins_with_refusal(d.text)]


PROMPT = """You are an editor.

- Keep every fact, name, number and date. Add none of your own to it.

Document: {{text}} and nothing at all that comes after it.
"""


def test_phrases_of_a_prompt_are_its_longer_sentences_without_fields():
    assert prompt_phrases(PROMPT, 7) == (
        "keep every fact, name, number and date.",
        "add none of your own to it.",
        "and nothing at all that comes after it.",
    )
    assert all(prompt_phrases(read_prompt(name).body, 7) for name in prompt_names())


def test_a_left_over_phrase_of_the_prompt_drops_a_document_unless_the_source_has_it():
    context = FilterContext(prompts=("Say it in other words.", PROMPT))
    left = f"{honest_text('a')}\nKeep every fact, name,\n NUMBER and date. {honest_text('b')}"
    assert drop_reason(CONFIG, make(left), SOURCE, context) == "repeats_prompt"
    assert drop_reason(CONFIG, make(left), SOURCE) is None
    assert drop_reason(FilterConfig(prompt_phrase_words=8), make(left), SOURCE, context) is None
    assert drop_reason(FilterConfig(prompt_phrase_words=None), make(left), SOURCE, context) is None
    quoting = f"{SOURCE} keep every fact, name, number and date. {SOURCE}"
    assert drop_reason(CONFIG, make(left), quoting, context) is None
    both = left + " Add none of your own to it."
    assert drop_reason(CONFIG, make(both), quoting, context) == "repeats_prompt"


def test_a_document_far_over_its_methods_target_is_too_long():
    context = FilterContext(target_tokens=100)
    assert drop_reason(CONFIG, make(honest_text("a"), tokens=300), SOURCE, context) is None
    long = make(honest_text("a"), tokens=301)
    assert drop_reason(CONFIG, long, SOURCE, context) == "too_long"
    assert drop_reason(CONFIG, long, SOURCE) is None
    assert drop_reason(FilterConfig(max_times_target=None), long, SOURCE, context) is None


def test_the_context_of_a_method_is_its_prompts_and_its_target():
    config = SynthesisConfig.model_validate({"method": "rephrase_hq"})
    assert FilterContext.of(config, ("body",)) == FilterContext(("body",), 550)
    in_chunks = SynthesisConfig.model_validate({"method": "rephrase_hq", "long_input": "chunk"})
    assert FilterContext.of(in_chunks, ()).target_tokens is None  # as long as it has chunks
    sbp = SynthesisConfig.model_validate({"method": "sbp", "tokens": 1000})
    assert FilterContext.of(sbp, ()) == FilterContext()


ENGLISH = "The council decided yesterday to close the school, and many parents are against it."
GERMAN = "Der Rat beschloss gestern, die Schule zu schließen, und viele Eltern sind dagegen."


@pytest.mark.parametrize(
    ("text", "source", "reason"),
    [
        (GERMAN, ENGLISH, "other_language"),
        (ENGLISH, GERMAN, "other_language"),
        (ENGLISH, "The parents were against the plan, and the council heard them out.", None),
        ("x = f(3) + 1", ENGLISH, None),  # no certain language
        (GERMAN, "1 2 3", None),
        (GERMAN, "", None),
    ],
)
def test_another_language_than_the_sources_drops_a_document_where_asked(text, source, reason):
    assert drop_reason(FilterConfig(language=True), make(text), source) == reason
    assert drop_reason(CONFIG, make(text), source) is None


def test_the_copied_share_counts_shingles_of_the_text():
    assert copied_share(SOURCE, SOURCE) == 1.0
    assert copied_share(honest_text("a"), SOURCE) == 0.0
    half = honest_text("a", 52) + " " + " ".join(SOURCE.split()[:52])
    assert 0.3 < copied_share(half, SOURCE) < 0.5


def test_a_text_too_short_for_shingles_is_a_copy_only_when_it_is_equal():
    assert copied_share("three short words", "three  short words\n") == 1.0
    assert copied_share("1 2 3", "4 5 6") == 0.0


def test_tokens_count_as_they_are_packed():
    assert packed_tokens(make("x", tokens=60)) == 61


def test_text_of_held_out_documents_is_dropped(tmp_path):
    held_out = tmp_path / "validation.jsonl"
    secret = "a heron waits where slow brown water turns under the old mill bridge today again"
    write_documents(held_out, [Document("v0", secret), Document("v1", "too short to compare")])
    context = FilterContext(held_out=held_out)
    words = secret.split()
    copied = f"{honest_text('a')} {' '.join(words[1:14]).upper()}!"
    nearly = f"{honest_text('a')} {' '.join(words[1:13])} and {' '.join(words[13:])}"
    assert drop_reason(CONFIG, make(copied), SOURCE, context) == "held_out_text"
    assert drop_reason(CONFIG, make(copied), SOURCE) is None
    assert drop_reason(CONFIG, make(nearly), SOURCE, context) is None
    assert pickle.loads(pickle.dumps(context)) == context  # it goes to Ray's workers
    with pytest.raises(DataError, match="nowhere"):
        read_held_out(tmp_path / "nowhere.jsonl")


def test_other_held_out_documents_under_the_same_name_are_read_again(tmp_path):
    held_out, context = tmp_path / "v.jsonl", FilterContext(held_out=tmp_path / "v.jsonl")
    reasons = []
    for changed, text in enumerate((honest_text("one"), honest_text("two")), start=1):
        write_documents(held_out, [Document("v", text)])
        os.utime(held_out, (changed, changed))
        reasons.append(drop_reason(CONFIG, make(honest_text("two")), SOURCE, context))
    assert reasons == [None, "held_out_text"]
