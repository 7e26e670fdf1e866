"""Settings of a synthesis step: each method's own where nothing is said, and clear refusals."""

import pytest

from megatron_synth.config import ConfigError, parse_config
from megatron_synth.synthesis import SynthesisConfig
from megatron_synth.synthesis.methods.defaults import DEFAULTS, METHODS, PROMPTLESS

PROMPTED = sorted(set(METHODS) - PROMPTLESS)


def parse(**tree):
    return parse_config(tree, SynthesisConfig, where="synthesis")


def test_every_method_has_its_defaults():
    assert set(DEFAULTS) == set(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_set_is_the_methods_own(method):
    config = parse(method=method, tokens=1000)
    own = DEFAULTS[method]
    for name in ("temperature", "top_p", "max_output_tokens", "max_input_tokens", "long_input"):
        assert getattr(config, name) == getattr(own, name)
    assert parse(method=method, tokens=1000, temperature=None) == config


@pytest.mark.parametrize("method", METHODS)
def test_what_is_set_wins_and_a_dump_reads_back_as_the_same(method):
    config = parse(method=method, tokens=1000, temperature=0.3, max_output_tokens=77)
    assert (config.temperature, config.max_output_tokens) == (0.3, 77)
    assert SynthesisConfig(**config.model_dump(mode="json")) == config


@pytest.mark.parametrize("method", PROMPTED)
def test_without_a_target_all_documents_are_made(method):
    config = parse(method=method)
    assert config.tokens is None
    assert config.request_cap is None
    assert parse(method=method, tokens="20K").request_cap == 2000


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"method": "sbp"}, "sbp draws without end: set tokens"),
        ({"method": "self_distill"}, "self_distill draws without end: set tokens"),
        ({"method": "sbp", "tokens": 9, "generations": 2}, "sbp has no use for generations"),
        ({"method": "sbp", "tokens": 9, "prompt_file": "a.md"}, "sbp has no use for prompt_file"),
        ({"method": "sbp", "tokens": 9, "long_input": "cut"}, "sbp has no use for long_input"),
        ({"method": "faq", "audiences": ["experts"]}, "faq has no use for audiences"),
        ({"method": "faq", "nemotron_prompt": "distill"}, "faq has no use for nemotron_prompt"),
        (
            {"method": "nemotron_cc", "prompt_file": "a.md"},
            "nemotron_cc has no use for prompt_file",
        ),
        ({"method": "latent_thoughts", "long_input": "cut"}, "long_input must be skip"),
        ({"method": "rephrase_qh"}, "rephrase_hq"),
        ({"method": "faq", "generation": 3}, "generations"),
        ({"method": "textbook", "audiences": []}, "audiences"),
        ({"method": "faq", "generations": 0}, "generations"),
    ],
)
def test_what_means_nothing_is_refused(tree, message):
    with pytest.raises(ConfigError, match=message):
        parse(**tree)


def test_one_prompt_file_may_stand_alone(tmp_path):
    path = str(tmp_path / "a.md")
    assert parse(method="faq", prompt_file=path) == parse(method="faq", prompt_file=[path])


@pytest.mark.parametrize(
    ("ray", "message"),
    [
        ({"address": "auto", "num_cpus": 4}, "num_cpus is for a Ray of our own"),
        ({"address": "h:6379", "object_store_mb": 100}, "object_store_mb is for a Ray of our own"),
        ({"address": "h:6379", "executor": "inline"}, "address says nothing"),
        ({"address": "ray://h:10001"}, "not through a Ray client"),
        ({"address": "h"}, "neither HOST:PORT nor auto"),
        ({"num_cpus": 3}, "set at least 4, or nothing"),
    ],
)
def test_a_ray_that_cannot_be_meant_is_refused(ray, message):
    with pytest.raises(ConfigError, match=message):
        parse(method="faq", shards=4, workers=3, ray=ray)


def test_a_dump_of_settings_with_a_cluster_reads_back_as_the_same():
    config = parse(method="faq", ray={"address": "10.0.0.1:6379"})
    assert SynthesisConfig(**config.model_dump(mode="json")) == config
