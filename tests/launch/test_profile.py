"""Cluster profiles: what a job asks for, by environment and by step."""

from pathlib import Path

import pytest

from megatron_synth.config import ConfigError, load_config, parse_config
from megatron_synth.experiments.graph import Step
from megatron_synth.launch.profile import Profile
from megatron_synth.launch.submit import load_profile

PROFILES = Path(__file__).resolve().parents[2] / "slurm" / "profiles"
SMALL = {"name": "small", "cpus_per_node": 8, "environments": {"base": {}}}
TRAIN = Step("train.sbp", "train", {}, ranks=2, gpu=True)
PACK = Step("pack.organic", "pack", {})


def profile(**changed):
    return parse_config({**SMALL, **changed}, Profile, where="test")


@pytest.mark.parametrize("path", sorted(PROFILES.glob("*.yaml")), ids=lambda p: p.name)
def test_every_profile_that_we_ship_is_valid(path):
    assert load_config(path, Profile, []).name == path.stem


def test_later_entries_win_setting_by_setting():
    found = profile(
        gpus_per_node=8,
        partition="batch",
        resources={
            "train": {"nodes": 4, "time": "12:00:00"},
            "train.*": {"partition": "large"},
            "train.sbp": {"nodes": 32},
        },
    ).job(TRAIN, "train")
    assert (found.nodes, found.time, found.partition) == (32, "12:00:00", "large")


def test_only_steps_that_take_gpus_ask_for_them():
    cluster = profile(gpus_per_node=8)
    assert cluster.job(TRAIN, "train").gpus_per_node == 8
    assert cluster.job(PACK, "base").gpus_per_node == 0


def test_a_training_step_has_a_rank_for_each_gpu_and_without_gpus_what_a_model_needs():
    assert profile(gpus_per_node=8).job(TRAIN, "train").ranks_per_node == 8
    assert profile().job(TRAIN, "train").ranks_per_node == 2


def test_an_environment_that_is_left_out_is_the_base():
    cluster = profile(environments={"base": {"venv": "/a"}, "train": {"venv": "/b"}})
    assert cluster.software("train").venv == "/b"
    assert cluster.software("judge").venv == "/a"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"partition": "a\nb"}, "one line"),
        ({"environments": {"train": {}}}, "at least `base`"),
        ({"environments": {"base": {"venv": "/a", "container": "b"}}}, "venv or container"),
        ({"variables": {"A-B": "1"}}, "no name of a variable"),
        ({"options": {"--mem": "1"}}, "no long option"),
        ({"resources": {"train": {"time": "tomorrow"}}}, "no time of Slurm's"),
        ({"gpus_per_nod": 8}, "gpus_per_node"),
    ],
)
def test_a_mistake_gets_one_clear_message(changed, message):
    with pytest.raises(ConfigError, match=message):
        profile(**changed)


def test_more_gpus_than_a_node_has_are_refused():
    cluster = profile(gpus_per_node=4, resources={"train": {"gpus_per_node": 8}})
    with pytest.raises(ConfigError, match="a node has 4"):
        cluster.job(TRAIN, "train")


def test_templates_are_found_beside_the_profile(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\ncpus_per_node: 2\nenvironments: {base: {}}\ntemplates: my_templates\n"
    )
    assert load_profile(path).templates == tmp_path / "my_templates"
