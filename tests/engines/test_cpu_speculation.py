"""The mended kernel of speculation on a CPU, in a process of its own since it imports vLLM."""

import subprocess
import sys

import pytest

SCRIPT = """
import torch
from megatron_synth.engines.vllm_settings import set_environment
set_environment()
from megatron_synth.engines.cpu_speculation import expand_batch_to_tokens
from vllm.v1.sample import rejection_sampler
ends = torch.tensor([2, 2, 5], dtype=torch.int32)
values = torch.tensor([0.7, 0.5, 0.0])
assert rejection_sampler.expand_batch_to_tokens is expand_batch_to_tokens
assert expand_batch_to_tokens(values, ends, 5).tolist() == values[[0, 0, 2, 2, 2]].tolist()
temperatures = expand_batch_to_tokens(values, ends, 5, replace_from=0, replace_to=1)
assert temperatures.tolist() == [values[0], values[0], 1, 1, 1]
assert expand_batch_to_tokens(torch.tensor([9, 3, 4]), ends, 5).tolist() == [9, 9, 4, 4, 4]
assert temperatures.dtype == torch.float32
"""


@pytest.mark.slow
def test_each_token_gets_its_requests_own_value():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
