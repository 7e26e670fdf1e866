"""The cluster that the other tests stand on."""

import pytest

pytestmark = pytest.mark.slow


def test_a_job_on_two_nodes_sees_its_gpus(cluster, tmp_path):
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/bash\nsrun bash -c 'echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES'\n")
    out = tmp_path / "out"
    job = int(
        cluster.run(
            *("sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=8"),
            *(f"--output={out}", str(script)),
        )
    )
    assert cluster.wait(job, "COMPLETED", "FAILED") == "COMPLETED"
    assert sorted(out.read_text().split()) == ["0,1,2,3,4,5,6,7"] * 2 + ["n1", "n2"]


def test_a_declared_node_takes_no_more_than_it_has(large_cluster, tmp_path):
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/bash\n")
    fits = ["sbatch", "--test-only", "--nodes=256", "--gpus-per-node=8", str(script)]
    large_cluster.run(*fits)
    with pytest.raises(AssertionError, match="node configuration"):
        large_cluster.run(*fits[:3], "--gpus-per-node=9", str(script))
