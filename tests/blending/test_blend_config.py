import pytest
import yaml

from megatron_synth.blending import BlendConfig
from megatron_synth.config import ConfigError, parse_config


def parse(text):
    return parse_config(yaml.safe_load(text), BlendConfig, where="blend.yaml")


BASE = "{sequence_length: 8, global_batch_size: 2, "


def test_the_short_form_is_enough():
    config = parse(BASE + "budget: 1M, corpora: {synthetic: {epochs: 1}, organic: }}")
    assert config.budget.tokens == 1_000_000
    assert config.corpora["synthetic"].asked == "epochs 1"
    assert config.corpora["organic"].fills


def test_a_budget_in_steps():
    assert parse(BASE + "budget: {steps: 100}, corpora: {a: {}}}").budget.steps == 100


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("corpora: {a: {token: 5}}}", "did you mean 'tokens'"),
        ("corpora: {a: {tokens: 5, share: 0.5}}}", "tokens and share are both set"),
        ("corpora: {a: {epochs: 5, max_epochs: 2}}}", "epochs 5 is over max_epochs 2"),
        ("corpora: {a: {share: 1.5}}}", "less than or equal to 1"),
        ("corpora: {}}", "at least one corpus"),
        ("corpora: {a: {}}, streams: {s: {corpora: {a: {}}}}}", "two places: a"),
        ("corpora: {a: {}}, streams: {a: {corpora: {b: {}}}}}", "as corpus and as stream: a"),
        ("streams: {a: {share: 0.5, corpora: {a: {}}}}}", "as corpus and as stream: a"),
        ("budget: {tokens: 5, steps: 4}, corpora: {a: {}}}", "tokens or steps, one of them"),
        ("corpora: {a: {}}, attention: none}", "attention"),
    ],
)
def test_a_wrong_config_is_refused_with_what_is_wrong(text, message):
    with pytest.raises(ConfigError, match=message):
        parse(BASE + text)
