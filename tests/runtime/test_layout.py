import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_synth.config import ConfigError
from megatron_synth.runtime import ParallelConfig

sizes = st.sampled_from([1, 2, 4])


@given(tensor=sizes, pipeline=sizes, copies=st.integers(1, 5))
def test_ranks_are_shared_between_the_model_and_its_copies(tensor, pipeline, copies):
    layout = ParallelConfig(tensor_parallel=tensor, pipeline_parallel=pipeline)
    assert layout.data_parallel(tensor * pipeline * copies) == copies


def test_ranks_that_do_not_fit_are_refused_with_the_numbers():
    layout = ParallelConfig(tensor_parallel=2, pipeline_parallel=2)
    with pytest.raises(ConfigError, match="6 ranks cannot hold a model split over 4"):
        layout.data_parallel(6)


def test_experts_that_do_not_fit_the_stage_are_refused():
    with pytest.raises(ConfigError, match="expert_parallel=3"):
        ParallelConfig(expert_parallel=3).data_parallel(4)


def test_experts_are_split_like_other_layers_unless_they_are_spread_whole():
    assert ParallelConfig(tensor_parallel=2).expert_tensor_parallel == 2
    assert ParallelConfig(tensor_parallel=2, expert_parallel=2).expert_tensor_parallel == 1
