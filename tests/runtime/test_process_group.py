import os
import socket
import subprocess
import sys

import pytest
import torch.distributed as dist

from megatron_synth.config import ConfigError
from megatron_synth.runtime import ParallelConfig, initialize, is_main_rank, shutdown


def test_one_process_needs_no_launcher_and_no_port():
    initialize(threads=1)
    initialize(threads=1)
    assert dist.get_world_size() == 1
    assert is_main_rank()


def test_it_starts_again_after_a_shutdown():
    initialize()
    shutdown()
    shutdown()
    assert not dist.is_initialized()
    initialize()
    assert dist.is_initialized()


def test_a_layout_for_more_ranks_than_there_are_is_refused():
    with pytest.raises(ConfigError, match="1 ranks cannot hold a model split over 2"):
        initialize(ParallelConfig(tensor_parallel=2))
    initialize()  # the refused layout left nothing behind


def run_rank(**environment):
    code = (
        "from megatron_synth.runtime import initialize\n"
        "from megatron_synth.config import MegatronSynthError\n"
        "import sys\n"
        "try: initialize()\n"
        "except MegatronSynthError as error: print(type(error).__name__, error); sys.exit(9)\n"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MASTER_")}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_half_an_environment_is_refused_with_advice():
    done = run_rank(RANK="0", WORLD_SIZE="2")
    assert done.returncode == 9, done.stderr
    assert "ConfigError" in done.stdout and "torchrun" in done.stdout


@pytest.mark.slow
def test_a_port_in_use_is_one_clear_message():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = run_rank(
            RANK="0",
            WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(taken.getsockname()[1]),
        )
    assert done.returncode == 9, done.stderr
    assert "RunError" in done.stdout and "--master-port" in done.stdout
