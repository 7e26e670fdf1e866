import pytest

from megatron_synth.config import ConfigError, parse_config
from megatron_synth.models import PRESETS, ModelConfig, count_parameters

# METHODS 4: published totals, or non-embedding counts where a paper counts those.
PUBLISHED_TOTAL = {"megadocs-300m": 299.6e6, "megadocs-table1": 154e6}
PUBLISHED_NON_EMBEDDING = {"llama-100m": 28e6, "llama-3b": 2687e6}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_valid_model(name):
    counts = count_parameters(ModelConfig(preset=name))
    assert counts.active <= counts.total
    assert counts.non_embedding < counts.total


@pytest.mark.parametrize(("name", "total"), PUBLISHED_TOTAL.items())
def test_totals_are_the_published_ones(name, total):
    counted = count_parameters(ModelConfig(preset=name)).total
    assert counted == pytest.approx(total, rel=2e-3)


@pytest.mark.parametrize(("name", "count"), PUBLISHED_NON_EMBEDDING.items())
def test_non_embedding_counts_are_the_published_ones(name, count):
    counted = count_parameters(ModelConfig(preset=name)).non_embedding
    assert counted == pytest.approx(count, rel=5e-3)


def test_the_quickstart_has_one_to_two_million_parameters():
    assert 1e6 <= count_parameters(ModelConfig(preset="quickstart-1m")).total <= 2e6


def test_what_the_user_sets_goes_before_the_preset():
    model = ModelConfig(preset="quickstart-1m", num_layers=2, vocab_size=300)
    assert (model.num_layers, model.vocab_size, model.hidden_size) == (2, 300, 128)


def test_a_mistyped_preset_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'quickstart-1m'"):
        parse_config({"preset": "quickstart-1b"}, ModelConfig, where="model")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_attention_heads": 3}, "not a multiple"),
        ({"num_query_groups": 3}, "num_query_groups=3"),
        ({"head_dim": 33}, "even head size"),
        ({"moe": {"num_experts": 4, "top_k": 5}}, "top_k=5"),
        ({"hiden_size": 3}, "did you mean 'hidden_size'"),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        parse_config({"preset": "quickstart-1m", **wrong}, ModelConfig, where="model")


def test_a_model_dump_reads_back_the_same():
    model = ModelConfig(preset="quickstart-moe", vocab_size=1000)
    assert ModelConfig.model_validate_json(model.model_dump_json()) == model


def test_the_vocabulary_is_padded_whatever_the_layout():
    assert ModelConfig(preset="quickstart-1m", vocab_size=300).padded_vocab_size == 384
    assert ModelConfig(preset="quickstart-1m", vocab_size=384).padded_vocab_size == 384


def test_importing_the_room_loads_no_torch():
    import subprocess
    import sys

    code = "import sys, megatron_synth.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
