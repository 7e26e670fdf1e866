"""Every script of every recipe is one that Slurm takes."""

from pathlib import Path

import pytest

from megatron_synth.config import load_config
from megatron_synth.experiments.config import ExperimentConfig
from megatron_synth.experiments.run_folder import RunFolder
from megatron_synth.launch.submit import load_profile, write_scripts

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "recipe", sorted((REPOSITORY / "examples").glob("*.yaml")), ids=lambda p: p.stem
)
def test_slurm_would_run_every_script(recipe, large_cluster, tmp_path):
    overrides = ["training.global_batch_size=512"] if recipe.stem == "quickstart" else []
    config = load_config(recipe, ExperimentConfig, overrides)
    profile = load_profile(REPOSITORY / "slurm" / "profiles" / "h100.yaml")
    folder = write_scripts(config, profile, RunFolder(tmp_path / "run"))
    scripts = sorted(folder.glob("*.sbatch"))
    assert len(scripts) > 10
    for script in scripts:
        large_cluster.run("sbatch", "--test-only", str(script))
