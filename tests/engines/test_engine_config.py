"""Which engine a config means, and what is said of a config that means none."""

import pytest

from megatron_synth.config import Config, ConfigError, apply_overrides, parse_config
from megatron_synth.engines import (
    EndpointConfig,
    EndpointEngine,
    EngineConfig,
    VllmConfig,
    gpus_of,
    make_engine,
)


class Step(Config):
    """A step's config with an engine."""

    engine: EngineConfig = VllmConfig()


def read(tree, *overrides):
    return parse_config(apply_overrides(tree, overrides), Step, where="step").engine


def test_an_engine_without_a_kind_is_vllm():
    assert read({}) == VllmConfig()
    assert read({"engine": {"concurrency": 3}}) == VllmConfig(concurrency=3)
    assert read({}, "engine.concurrency=3") == VllmConfig(concurrency=3)


def test_the_kind_says_which_settings_there_are():
    found = read({"engine": {"kind": "endpoint", "url": "http://here/v1", "model": "m"}})
    assert found == EndpointConfig(url="http://here/v1", model="m")


@pytest.mark.parametrize(
    "config", [VllmConfig(concurrency=9), EndpointConfig(url="http://a", model="m")]
)
def test_what_a_manifest_holds_is_read_back_as_the_same_engine(config):
    step = Step(engine=config)
    assert Step.model_validate(step.model_dump(mode="json")) == step
    assert Step.model_validate_json(step.model_dump_json()) == step


@pytest.mark.parametrize("engine", [{"kind": "vlm"}, {"kind": None}, 3, None, []])
def test_an_unknown_kind_names_the_known_ones(engine):
    with pytest.raises(ConfigError, match=r"'engine': kind must be vllm .* or endpoint"):
        read({"engine": engine})


@pytest.mark.parametrize(
    ("engine", "near"),
    [
        ({"concurency": 3}, "concurrency"),
        ({"kind": "endpoint", "url": "http://a", "model": "m", "timeout": 3}, "timeout_seconds"),
    ],
)
def test_a_wrong_key_is_named_with_the_nearest_one_of_its_own_kind(engine, near):
    with pytest.raises(ConfigError, match=f"did you mean '{near}'"):
        read({"engine": engine})


def test_an_endpoint_needs_no_model_folder_and_no_gpu():
    config = EndpointConfig(url="http://127.0.0.1:1/v1", model="m")
    engine = make_engine(config, None)
    engine.close()
    assert isinstance(engine, EndpointEngine)
    assert gpus_of(config) == 0
    assert gpus_of(VllmConfig(tensor_parallel=4)) == 4
