"""Memory of training, reckoned, against peaks measured on one H100 (docs/benchmarks.md)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_synth.models import ModelConfig, count_parameters, training_memory
from megatron_synth.runtime import ParallelConfig

DENSE = ModelConfig(preset="olmo2-400m")
MOE = ModelConfig(preset="olmoe-7b-a1b", num_layers=8, moe={"num_experts": 16, "top_k": 4})
ONE = ParallelConfig()


@pytest.mark.parametrize(
    ("model", "micro_batch", "measured_gb"),
    [(DENSE, 16, 61), (MOE, 8, 41), (MOE, 16, 60), (MOE, 24, 78)],
)
def test_it_is_near_what_was_measured(model, micro_batch, measured_gb):
    found = training_memory(
        model, ONE, ranks=1, micro_batch_size=micro_batch, sequence_length=2048
    ).total
    assert found / 1e9 == pytest.approx(measured_gb, rel=0.12)


def test_a_parameter_takes_18_bytes_beside_the_activations():
    found = training_memory(DENSE, ONE, ranks=1, micro_batch_size=1, sequence_length=2)
    parameters = count_parameters(DENSE).total
    held = found.weights + found.gradients + found.optimizer
    assert held == pytest.approx(18 * parameters, rel=0.001)  # and the padding of the vocabulary


def test_the_distributed_optimizer_shares_its_state_among_the_copies():
    settings = {"ranks": 8, "micro_batch_size": 1, "sequence_length": 128}
    alone = training_memory(DENSE, ONE, **settings)
    shared = training_memory(DENSE, ONE, **settings, distributed_optimizer=True)
    assert shared.optimizer == alone.optimizer // 8
    assert (shared.weights, shared.gradients) == (alone.weights, alone.gradients)


@given(
    tensor=st.sampled_from([1, 2, 4, 8]),
    pipeline=st.sampled_from([1, 2, 4]),
    expert=st.sampled_from([1, 2, 4]),
    recompute=st.booleans(),
)
def test_splitting_never_takes_more(tensor, pipeline, expert, recompute):
    settings = {"ranks": 64, "micro_batch_size": 2, "sequence_length": 256, "recompute": recompute}
    layout = ParallelConfig(
        tensor_parallel=tensor, pipeline_parallel=pipeline, expert_parallel=expert
    )
    one = training_memory(MOE, ONE, **settings)
    split = training_memory(MOE, layout, **settings)
    assert split.weights <= one.weights
    assert split.activations <= one.activations


def test_recomputing_keeps_one_layer_whole():
    settings = {"ranks": 1, "micro_batch_size": 16, "sequence_length": 2048}
    kept = training_memory(DENSE, ONE, **settings)
    again = training_memory(DENSE, ONE, **settings, recompute=True)
    assert again.activations < kept.activations / 2
