"""One Slurm cluster for all tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import Cluster, slurm_cluster, unpack_slurm


@pytest.fixture(scope="session")
def slurm_programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slurm's programs, unpacked."""
    return unpack_slurm(tmp_path_factory.mktemp("slurm"))


@pytest.fixture(scope="session")
def cluster(slurm_programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Four virtual nodes, each with 64 CPUs and 8 GPUs by declaration."""
    with slurm_cluster(slurm_programs, tmp_path_factory.mktemp("cluster") / "c") as running:
        yield running


@pytest.fixture(scope="session")
def large_cluster(
    slurm_programs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """A cluster of 512 nodes on paper: for `sbatch --test-only`."""
    work = tmp_path_factory.mktemp("large") / "c"
    with slurm_cluster(slurm_programs, work, nodes=0, declared_nodes=512) as running:
        yield running
