import pytest

from megatron_synth.config import ConfigError
from megatron_synth.models import ModelConfig, check_layout
from megatron_synth.runtime import ParallelConfig

DENSE = ModelConfig(preset="quickstart-1m", vocab_size=4096)
SPARSE = ModelConfig(preset="quickstart-moe", vocab_size=4096)


@pytest.mark.parametrize(
    ("model", "layout"),
    [
        (DENSE, {"tensor_parallel": 2}),
        (DENSE, {"pipeline_parallel": 2}),
        (SPARSE, {"tensor_parallel": 2, "expert_parallel": 2}),
        # 129 ids are padded to 256 rows, which two ranks can share.
        (DENSE.model_copy(update={"vocab_size": 129}), {"tensor_parallel": 2}),
    ],
)
def test_a_layout_that_divides_every_size_is_taken(model, layout):
    check_layout(model, ParallelConfig(**layout))


@pytest.mark.parametrize(
    ("model", "layout", "words"),
    [
        (DENSE, {"tensor_parallel": 3}, "num_attention_heads=.* over tensor_parallel=3"),
        (DENSE, {"pipeline_parallel": 3}, "num_layers=.* over pipeline_parallel=3"),
        (DENSE, {"expert_parallel": 2}, "no experts"),
        (SPARSE, {"expert_parallel": 3}, "moe.num_experts=.* over expert_parallel=3"),
    ],
)
def test_one_that_does_not_is_refused_with_the_size_and_the_key(model, layout, words):
    with pytest.raises(ConfigError, match=words):
        check_layout(model, ParallelConfig(**layout))
