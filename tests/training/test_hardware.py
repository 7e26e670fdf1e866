"""What needs Transformer Engine is refused with a reason where it is not."""

import pytest
from tiny_training import TINY, Windows, settings

from megatron_synth.config import ConfigError
from megatron_synth.runs import Progress
from megatron_synth.training import hardware, train
from megatron_synth.training.hardware import require_engine


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"fp8": "hybrid"}, "fp8=hybrid needs the package transformer_engine and a GPU"),
        ({"context_parallel": 2}, "context_parallel=2 needs .*this machine has no GPU"),
        ({"moe_dispatcher": "flex"}, "moe_dispatcher=flex needs the package deep_ep"),
    ],
)
def test_a_cpu_refuses_it_before_anything_is_written(asked, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        train(settings(**asked), TINY, Windows(400), tmp_path / "out", Progress(), data_hash="d")
    assert not (tmp_path / "out").exists()


def test_a_gpu_without_the_package_is_told_what_to_install(monkeypatch):
    monkeypatch.setattr(hardware, "device", lambda: type("Gpu", (), {"type": "cuda"}))
    with pytest.raises(ConfigError, match="has no package transformer_engine"):
        require_engine(settings(fp8="e4m3"))


def test_windows_that_cannot_be_cut_into_pieces_are_refused(monkeypatch):
    monkeypatch.setattr(hardware, "device", lambda: type("Gpu", (), {"type": "cuda"}))
    monkeypatch.setattr(hardware.importlib.util, "find_spec", lambda name: name)
    require_engine(settings(context_parallel=2, fp8="e4m3", moe_dispatcher="flex"))
    with pytest.raises(ConfigError, match="32 tokens cannot be cut into 6 pieces"):
        require_engine(settings(context_parallel=3))
