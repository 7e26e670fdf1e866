"""SBP's requests and documents."""

from itertools import islice

import pytest

from megatron_synth.config import ConfigError
from megatron_synth.corpus import Document
from megatron_synth.engines import Completion
from megatron_synth.synthesis import SynthesisConfig
from megatron_synth.synthesis.methods.sbp import Sbp, banned_ids
from megatron_synth.synthesis.seeds import build_seeds

CONFIG = SynthesisConfig(tokens=1000, seed=4)


def request_of(method, item):
    """The one request of an item."""
    [request] = next(method.write(item))
    return request


def test_the_prompt_is_the_seed_and_the_separator_and_the_answer_fits(make_sbp, seeds, tokenizer):
    method = make_sbp(CONFIG)
    for item in islice(method.items(0, 1), 300):
        request = request_of(method, item)
        prompt, sampling = request.prompt, request.sampling
        text = seeds.text(item.source_row)
        assert prompt == [*tokenizer.encode(text), tokenizer.separator_id]
        assert len(prompt) + sampling.max_tokens <= 512
        assert sampling.max_tokens <= 256
        assert sampling.stop_ids == (tokenizer.eos_id,)
        assert (sampling.temperature, sampling.top_p) == (1.0, 0.9)
        assert item.source_id == seeds.name(item.source_row)
        assert method.source_text(item) == text


def test_a_long_answer_is_cut_at_the_context(make_sbp):
    method = make_sbp(CONFIG.model_copy(update={"max_output_tokens": 10_000}))
    for item in islice(method.items(0, 1), 50):
        request = request_of(method, item)
        assert len(request.prompt) + request.sampling.max_tokens == 512


def test_shards_share_the_same_sequence_of_items(make_sbp):
    method = make_sbp(CONFIG)
    whole = list(islice(method.items(0, 1), 300))
    for shards in (2, 3, 7):
        parts = [list(islice(method.items(k, shards), 300)) for k in range(shards)]
        joined = sorted((a for part in parts for a in part), key=lambda a: a.index)
        assert joined[:300] == whole


def keys_of(method, count):
    return [request_of(method, item).key for item in islice(method.items(0, 1), count)]


def test_keys_are_unique_and_stable(make_sbp):
    keys = keys_of(make_sbp(CONFIG), 2000)
    assert len(set(keys)) == 2000
    assert keys == keys_of(make_sbp(CONFIG), 2000)


@pytest.mark.parametrize(
    "change", [{"seed": 5}, {"temperature": 0.5}, {"top_p": 0.8}, {"max_output_tokens": 77}]
)
def test_settings_that_change_the_answer_change_the_keys(make_sbp, change):
    changed = set(keys_of(make_sbp(CONFIG.model_copy(update=change)), 50))
    assert not changed & set(keys_of(make_sbp(CONFIG), 50))


def document_of(method, item, **answer):
    writing = method.write(item)
    [request] = next(writing)
    with pytest.raises(StopIteration) as finished:
        writing.send([Completion(request.key, **answer)])
    return request, finished.value.value


def test_every_document_carries_its_provenance(make_sbp, tokenizer):
    method = make_sbp(CONFIG)
    items = list(islice(method.items(0, 1), 200))
    item = next(i for i in items if i.generation == 2)
    ids = tuple(tokenizer.encode("a new text"))
    request, document = document_of(method, item, token_ids=ids, prompt_tokens=9, output_tokens=5)
    assert document == Document(
        id=f"{item.source_id}/sbp-0-2",
        text="a new text",
        source_id=item.source_id,
        method="sbp",
        generation=2,
        round=0,
        generator="generator@0",
        seed=request.sampling.seed,
        sampling={"temperature": 1.0, "top_p": 0.9, "max_tokens": request.sampling.max_tokens},
        finish_reason="stop",
        token_counts={"prompt": 9, "output": 5, "text": len(ids)},
        metadata={"request": item.index},
    )
    documents = [document_of(method, i)[1] for i in items]
    assert len({d.id for d in documents}) == len(items)


def test_an_endpoints_answer_is_text_alone(make_sbp):
    method = make_sbp(CONFIG)
    _, document = document_of(method, next(method.items(0, 1)), text="an answer")
    assert document.text == "an answer"


def test_seeds_without_room_for_an_answer_are_not_drawn(tokenizer, tmp_path):
    documents = [Document("long", "word " * 2000), Document("short", "word " * 10)]
    seeds = build_seeds(documents, tokenizer, tmp_path / "seeds")
    method = Sbp(CONFIG, seeds, tokenizer, 256, "g")
    assert method.count_inputs() == {"seeds_too_long": 1}
    assert {item.source_id for item in islice(method.items(0, 1), 50)} == {"short"}
    with pytest.raises(ConfigError, match="no seed document fits"):
        Sbp(CONFIG, seeds, tokenizer, 40, "g")


def test_control_tokens_and_unused_rows_are_banned_and_eos_is_not(tokenizer):
    banned = banned_ids(tokenizer, tokenizer.vocab_size + 3)
    assert banned == sorted(
        {tokenizer.separator_id, *range(tokenizer.vocab_size, tokenizer.vocab_size + 3)}
    )
    assert tokenizer.eos_id not in banned
