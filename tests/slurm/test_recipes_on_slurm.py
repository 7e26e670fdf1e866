"""Every script of every recipe is one that Slurm takes."""

from pathlib import Path

import pytest

from megatron_synth.config import load_config
from megatron_synth.experiments.config import ExperimentConfig
from megatron_synth.experiments.run_folder import RunFolder
from megatron_synth.launch.profile import ResourcesConfig
from megatron_synth.launch.submit import load_profile, write_scripts

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "recipe", sorted((REPOSITORY / "examples").glob("*.yaml")), ids=lambda p: p.stem
)
def test_slurm_would_run_every_script(recipe, large_cluster, tmp_path):
    config = load_config(recipe, ExperimentConfig, [])
    profile = load_profile(REPOSITORY / "slurm" / "profiles" / "h100.yaml")
    if config.training.global_batch_size < 256:  # a toy's batch is too small for so many ranks
        one = ResourcesConfig(nodes=1, gpus_per_node=1)
        profile = profile.model_copy(update={"resources": {**profile.resources, "train": one}})
    folder = write_scripts(config, profile, RunFolder(tmp_path / "run"))
    scripts = sorted(folder.glob("*.sbatch"))
    assert len(scripts) > 10
    for script in scripts:
        large_cluster.run("sbatch", "--test-only", str(script))
