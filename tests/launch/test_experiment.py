from pathlib import Path

import pytest

from megatron_synth.config import ConfigError
from megatron_synth.experiments.graph import Step
from megatron_synth.experiments.run_folder import RunFolder
from megatron_synth.launch import experiment


def test_more_ranks_than_gpus_are_refused_and_without_gpus_ranks_share_the_cpu() -> None:
    steps = [Step("train.repeat", "train", {}, {}, ranks=2, gpu=True), Step("pack", "pack", {}, {})]
    experiment.check_gpus(steps, 0)
    experiment.check_gpus(steps, 2)
    with pytest.raises(ConfigError, match=r"train\.repeat: needs 2 ranks.* 1 GPUs"):
        experiment.check_gpus(steps, 1)


def test_a_step_of_several_ranks_is_started_under_torchrun_and_one_of_one_rank_is_not() -> None:
    run = RunFolder(Path("runs/a"))
    two = experiment.command(run, Step("train.repeat", "train", {}, {}, ranks=2))
    assert "torch.distributed.run" in two
    assert "--nproc-per-node=2" in two
    one = experiment.command(run, Step("train.repeat", "train", {}, {}))
    assert "torch.distributed.run" not in one
    assert two[-4:] == one[-4:]
