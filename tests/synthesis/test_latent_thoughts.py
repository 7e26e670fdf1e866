"""Latent thoughts: G token-equal split points, the whole prefix and suffix, one rationale each."""

from itertools import groupby

import pytest
from scripted import write_with

from megatron_synth.config import ConfigError
from megatron_synth.corpus import Document
from megatron_synth.synthesis import Generator, SynthesisConfig, load_prompts
from megatron_synth.synthesis.methods.making import make_method
from megatron_synth.synthesis.pieces import CUT, cut_points
from megatron_synth.synthesis.prompts import load_prompt
from megatron_synth.synthesis.seeds import build_seeds

PROMPT = load_prompt("latent_thoughts", frozenset({"prefix", "suffix"}))


def test_each_split_point_gets_a_rationale_from_all_that_stands_around_it(make_prompted, tokenizer):
    method = make_prompted("latent_thoughts", generations=3)
    for source_id, items in groupby(list(method.items(0, 1))[:30], key=lambda i: i.source_id):
        made = [write_with(method, item, lambda request: "Hence bees.") for item in items]
        text = method.setting.seeds.text(int(source_id.removeprefix("doc-")))
        cuts = cut_points(text, tokenizer, 4)
        assert [document.metadata[CUT] for document, _ in made] == list(cuts)
        assert [document.generation for document, _ in made] == [0, 1, 2]
        assert {document.metadata["splits"] for document, _ in made} == {3}
        for cut, (document, [[request]]) in zip(cuts, made, strict=True):
            assert request.prompt == PROMPT.fill({"prefix": text[:cut], "suffix": text[cut:]})
            assert document.text == "Hence bees."
            assert request.sampling.max_tokens == 512
            assert (request.sampling.temperature, request.sampling.top_p) == (1.0, 1.0)


def test_documents_that_do_not_fit_whole_are_left_out_and_counted(make_prompted):
    method = make_prompted("latent_thoughts", generations=2, max_input_tokens=60)
    seeds = method.setting.seeds
    long = int((seeds.lengths > 60).sum())
    assert method.count_inputs() == {"inputs_skipped": long}
    assert method.total == 2 * (len(seeds) - long)


def test_documents_with_fewer_tokens_than_pieces_are_left_out_and_counted(tokenizer, tmp_path):
    documents = [Document("short", "ba"), Document("long", "bake limo nura " * 9)]
    build_seeds(documents, tokenizer, tmp_path / "seeds")
    config = SynthesisConfig(method="latent_thoughts", generations=5)
    generator = Generator("g@0", 8192, ())
    method = make_method(
        config, load_prompts(config), tmp_path / "seeds", tokenizer.folder, generator
    )
    assert {item.source_id for item in method.items(0, 1)} == {"long"}
    assert method.count_inputs() == {"inputs_skipped": 0, "inputs_too_short": 1}


def test_more_tokens_than_characters_cannot_be_split_and_say_so(tokenizer, tmp_path):
    build_seeds([Document("emoji", "🐝🐝")], tokenizer, tmp_path / "seeds")
    config = SynthesisConfig(method="latent_thoughts", generations=4)
    generator = Generator("g@0", 8192, ())
    method = make_method(
        config, load_prompts(config), tmp_path / "seeds", tokenizer.folder, generator
    )
    document, asked = write_with(method, next(method.items(0, 1)), lambda request: "never")
    assert asked == []
    assert document.metadata["failure_message"] == "too short to be split"
    assert document.finish_reason == "error"


@pytest.mark.parametrize("policy", ["cut", "chunk"])
def test_a_part_of_a_document_is_not_the_method(policy):
    with pytest.raises(ValueError, match="long_input must be skip"):
        SynthesisConfig(method="latent_thoughts", long_input=policy)


def test_a_context_without_room_is_refused(make_prompted):
    with pytest.raises(ConfigError, match="leaves no room"):
        make_prompted("latent_thoughts", context=300)
