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


def test_the_prompt_is_the_seed_and_the_separator_and_the_answer_fits(make_sbp, seeds, tokenizer):
    for ask in islice(make_sbp(CONFIG).asks(0, 1), 300):
        prompt = ask.request.prompt
        assert prompt == [*seeds.ids(ask.source_row), tokenizer.separator_id]
        sampling = ask.request.sampling
        assert len(prompt) + sampling.max_tokens <= 512
        assert sampling.max_tokens <= 256
        assert sampling.stop_ids == (tokenizer.eos_id,)
        assert (sampling.temperature, sampling.top_p) == (1.0, 0.9)
        assert ask.source_id == seeds.name(ask.source_row)


def test_a_long_answer_is_cut_at_the_context(make_sbp):
    config = CONFIG.model_copy(update={"max_output_tokens": 10_000})
    for ask in islice(make_sbp(config).asks(0, 1), 50):
        assert len(ask.request.prompt) + ask.request.sampling.max_tokens == 512


def test_shards_share_the_same_sequence_of_requests(make_sbp):
    method = make_sbp(CONFIG)
    whole = list(islice(method.asks(0, 1), 300))
    for shards in (2, 3, 7):
        parts = [list(islice(method.asks(k, shards), 300)) for k in range(shards)]
        joined = sorted((a for part in parts for a in part), key=lambda a: a.index)
        assert joined[:300] == whole


def test_keys_are_unique_and_stable(make_sbp):
    keys = [ask.request.key for ask in islice(make_sbp(CONFIG).asks(0, 1), 2000)]
    assert len(set(keys)) == 2000
    assert keys == [ask.request.key for ask in islice(make_sbp(CONFIG).asks(0, 1), 2000)]


@pytest.mark.parametrize(
    "change", [{"seed": 5}, {"temperature": 0.5}, {"top_p": 0.8}, {"max_output_tokens": 77}]
)
def test_settings_that_change_the_answer_change_the_keys(make_sbp, change):
    def keys(config):
        return {ask.request.key for ask in islice(make_sbp(config).asks(0, 1), 50)}

    assert not keys(CONFIG) & keys(CONFIG.model_copy(update=change))


def test_every_document_carries_its_provenance(make_sbp, tokenizer):
    method = make_sbp(CONFIG)
    asks = list(islice(method.asks(0, 1), 200))
    ask = next(a for a in asks if a.generation == 2)
    ids = tuple(tokenizer.encode("a new text"))
    document = method.document(
        ask, Completion(ask.request.key, token_ids=ids, prompt_tokens=9, output_tokens=5)
    )
    assert document == Document(
        id=f"{ask.source_id}/sbp-0-2",
        text="a new text",
        source_id=ask.source_id,
        method="sbp",
        generation=2,
        round=0,
        generator="generator@0",
        seed=ask.request.sampling.seed,
        sampling={"temperature": 1.0, "top_p": 0.9, "max_tokens": ask.request.sampling.max_tokens},
        finish_reason="stop",
        token_counts={"prompt": 9, "output": 5, "text": len(ids)},
        metadata={"request": ask.index},
    )
    documents = [method.document(a, Completion(a.request.key)) for a in asks]
    assert len({d.id for d in documents}) == len(asks)


def test_seeds_without_room_for_an_answer_are_not_drawn(tokenizer, tmp_path):
    documents = [Document("long", "word " * 2000), Document("short", "word " * 10)]
    seeds = build_seeds(documents, tokenizer, tmp_path / "seeds")
    method = Sbp(CONFIG, seeds, tokenizer, 256, "g")
    assert method.too_long == 1
    assert {ask.source_id for ask in islice(method.asks(0, 1), 50)} == {"short"}
    with pytest.raises(ConfigError, match="no seed document fits"):
        Sbp(CONFIG, seeds, tokenizer, 40, "g")


def test_control_tokens_and_unused_rows_are_banned_and_eos_is_not(tokenizer):
    banned = banned_ids(tokenizer, tokenizer.vocab_size + 3)
    assert banned == sorted(
        {tokenizer.separator_id, *range(tokenizer.vocab_size, tokenizer.vocab_size + 3)}
    )
    assert tokenizer.eos_id not in banned
