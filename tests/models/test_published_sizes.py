"""Parameter counts of the presets: closed form, built by transformers and Megatron-Core, published.

Models are built on torch's meta device: shapes without memory.
"""

import math

import pytest
import torch

from megatron_synth.models import PRESETS, ModelConfig, count_parameters
from megatron_synth.models.build import CausalModel, transformer_config
from megatron_synth.models.hugging_face_config import hugging_face_config
from megatron_synth.models.hugging_face_weights import hugging_face_shapes
from megatron_synth.models.specs import block_spec
from megatron_synth.runtime import ParallelConfig, initialize

# METHODS 4; what the papers and the released configs print, as precisely as they print it.
PUBLISHED = {
    ("olmo2-400m", "total"): (474e6, 0.5e6),
    ("olmo2-400m", "non_embedding"): (268e6, 1e6),  # 268.5M, cut off
    ("olmo2-1b", "total"): (1.48e9, 0.005e9),
    ("olmo2-1b", "non_embedding"): (1.1e9, 0.05e9),
    ("olmoe-7b-a1b", "total"): (6.9e9, 0.05e9),
    ("olmoe-7b-a1b", "active"): (1.3e9, 0.05e9),
    # Labels of the paper, which prints no counts: nominal, and nearest without embeddings.
    ("sbp-3b", "non_embedding"): (3e9, 0.5e9),
    ("sbp-6b", "non_embedding"): (6e9, 0.5e9),
    ("megadocs-300m", "total"): (299.6e6, 0.05e6),
    ("megadocs-table1", "total"): (154e6, 0.5e6),
    ("llama-100m", "non_embedding"): (28e6, 0.5e6),
    ("llama-3b", "non_embedding"): (2687e6, 0.5e6),
}
# The weights of allenai/OLMo-2-0425-1B (its vocabulary padded to 100,352) and of
# allenai/OLMoE-1B-7B-0924, from the sizes in their config.json.
RELEASED = {("olmo2-1b", 100_352): 1_484_916_736, ("olmoe-7b-a1b", 50_304): 6_919_161_856}


def number_of(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("name", "count"), PUBLISHED)
def test_counts_are_the_published_ones(name, count):
    published, rounding = PUBLISHED[name, count]
    counted = getattr(count_parameters(ModelConfig(preset=name)), count)
    assert counted == pytest.approx(published, abs=rounding)


@pytest.mark.parametrize(("name", "vocabulary"), RELEASED)
def test_counts_are_those_of_the_released_models(name, vocabulary):
    config = ModelConfig(preset=name, vocab_size=vocabulary)
    assert count_parameters(config).total == RELEASED[name, vocabulary]


@pytest.mark.parametrize("name", PRESETS)
def test_the_closed_form_counts_what_transformers_builds(name):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = ModelConfig(preset=name)
    described = hugging_face_config(config, max_positions=4096)
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(described.pop("model_type"), **described)
        )
    counts = count_parameters(config)
    assert number_of(theirs) == counts.total
    assert sum(map(math.prod, hugging_face_shapes(config).values())) == counts.total
    inside = number_of(theirs) - number_of(theirs.get_input_embeddings())
    if not config.tie_embeddings:
        inside -= number_of(theirs.get_output_embeddings())
    assert inside == counts.non_embedding


@pytest.mark.parametrize("name", PRESETS)
def test_the_closed_form_counts_what_megatron_core_builds(name):
    """One layer and two: every layer has the same parts."""
    initialize(threads=1)
    counted, built = [], []
    for layers in (1, 2):
        config = ModelConfig(preset=name, num_layers=layers)
        transformer = transformer_config(config, ParallelConfig(), torch.float32)
        with torch.device("meta"):
            model = CausalModel(
                config=transformer,
                transformer_layer_spec=block_spec(config, transformer),
                vocab_size=config.padded_vocab_size,
                max_sequence_length=128,
                share_embeddings_and_output_weights=config.tie_embeddings,
                position_embedding_type="rope",
            )
        assert all(parameter.is_meta for parameter in model.parameters())
        padding = (config.padded_vocab_size - config.vocab_size) * config.hidden_size
        built.append(number_of(model) - padding * (1 if config.tie_embeddings else 2))
        counted.append(count_parameters(config).total)
    assert built == counted
