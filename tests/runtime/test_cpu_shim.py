import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_synth.runtime import cpu_shim

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the shim is inert with CUDA")


def test_installing_again_changes_nothing():
    assert cpu_shim.install()
    from megatron.core import parallel_state

    before = parallel_state.torch
    assert cpu_shim.install()
    assert parallel_state.torch is before


def test_megatron_sees_a_cpu_where_it_asks_for_cuda():
    cpu_shim.install()
    from megatron.core.optimizer import clip_grads

    assert clip_grads.torch.zeros(2, device="cuda").device.type == "cpu"
    assert clip_grads.torch.tensor([1, 2], device="cpu", pin_memory=True).tolist() == [1, 2]
    assert clip_grads.torch.cuda.current_device() == torch.device("cpu")
    assert not clip_grads.torch.cuda.is_available()


def test_other_libraries_see_the_real_torch():
    cpu_shim.install()
    with pytest.raises((RuntimeError, AssertionError)):
        torch.zeros(2, device="cuda")
    with pytest.raises((RuntimeError, AssertionError)):
        torch.cuda.current_device()
    assert torch.zeros(1).type() == "torch.FloatTensor"


def test_it_does_nothing_where_cuda_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cpu_shim, "_replace_functions", lambda: pytest.fail("changed something"))
    assert not cpu_shim.install()


def test_the_router_runs_without_transformer_engine_where_cuda_is(monkeypatch):
    from megatron.core.transformer.moe import moe_utils

    if moe_utils.HAVE_TE:
        pytest.skip("Transformer Engine is here")
    monkeypatch.delattr(moe_utils, "te_general_gemm", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not cpu_shim.install()
    assert moe_utils.te_general_gemm is None


def test_an_untested_megatron_core_is_warned_of(monkeypatch, caplog):
    monkeypatch.setattr(cpu_shim, "TESTED_MEGATRON_CORE", ("0.0.1",))
    cpu_shim._warn_of_untested_version.cache_clear()
    with caplog.at_level(logging.WARNING, logger="megatron_synth"):
        cpu_shim.install()
    assert "untested" in caplog.text and "0.0.1" in caplog.text
    cpu_shim._warn_of_untested_version.cache_clear()


def test_a_fork_draws_from_its_own_state_and_leaves_the_global_one():
    cpu_shim.install()
    from megatron.core.tensor_parallel.random import CudaRNGStatesTracker

    tracker = CudaRNGStatesTracker()
    torch.manual_seed(1)
    tracker.add("model-parallel-rng", 7)
    before = torch.get_rng_state()
    with tracker.fork():
        first = torch.rand(3)
    assert torch.equal(before, torch.get_rng_state())
    with tracker.fork():
        second = torch.rand(3)
    expected = torch.rand(6, generator=torch.Generator().manual_seed(7))
    assert torch.equal(torch.cat([first, second]), expected)


@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20),
    st.floats(0.01, 100, allow_nan=False),
)
def test_clipping_scales_to_the_largest_norm_and_never_up(values, largest):
    parameter = torch.nn.Parameter(torch.zeros(len(values), dtype=torch.float64))
    parameter.grad = torch.tensor(values, dtype=torch.float64)
    norm = float(parameter.grad.norm())
    cpu_shim._clip_gradients([parameter], largest, norm)
    clipped = float(parameter.grad.norm())
    assert clipped == pytest.approx(min(norm, largest), rel=1e-3, abs=1e-5)
