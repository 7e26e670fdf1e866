import pytest
import torch

from megatron_synth.runtime import distributed_optimizer as mending
from megatron_synth.runtime import float64, initialize


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_softmax_in_a_finer_type_is_float32_but_for_float64(dtype):
    logits = torch.linspace(-3, 3, 7).to(dtype)
    got = float64.softmax(logits, dim=-1, dtype=torch.float32)
    finer = torch.float64 if dtype == torch.float64 else torch.float32
    assert got.dtype == finer
    assert torch.equal(got, torch.softmax(logits.to(finer), dim=-1))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-6), (torch.float64, 1e-15)]
)
def test_cross_entropy_keeps_float64_and_leaves_its_logits_alone(dtype, tolerance):
    initialize()
    from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

    logits = torch.randn(5, 2, 11, generator=torch.Generator().manual_seed(1)).to(dtype)
    labels = torch.arange(10).view(5, 2)
    before = logits.clone()
    got = vocab_parallel_cross_entropy(logits.clone() if dtype == torch.float32 else logits, labels)
    expected = torch.nn.functional.cross_entropy(
        logits.double().flatten(0, 1), labels.flatten(), reduction="none"
    ).view(5, 2)
    assert torch.equal(logits, before)
    assert torch.allclose(got.double(), expected, rtol=tolerance, atol=tolerance)


def test_mending_twice_is_mending_once():
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    mending.mend()
    once = DistributedOptimizer._set_main_param_and_optimizer_states
    mending.mend()
    assert DistributedOptimizer._set_main_param_and_optimizer_states is once


def test_a_type_is_named_as_on_a_gpu_and_conversions_stay():
    tensor = torch.zeros(2)
    assert mending._type(tensor) == "torch.cuda.FloatTensor"
    assert mending._type(tensor, torch.float64).dtype == torch.float64
