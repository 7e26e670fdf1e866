"""`models list` and `models params` as a user meets them."""

import json
import logging

import pytest

from megatron_synth.cli import app, main
from megatron_synth.models import PRESETS


@pytest.fixture
def answer(capsys):
    """answer(arguments...): exit status, stdout and stderr of the command line in this process."""
    logger = logging.getLogger("megatron_synth")
    before = (list(logger.handlers), logger.level, logger.propagate)

    def run(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            main(lambda: app(list(arguments)))
        shown = capsys.readouterr()
        return leaving.value.code or 0, shown.out, shown.err

    yield run
    logger.handlers, logger.level, logger.propagate = before


def test_the_list_has_every_preset_with_its_counts(answer):
    status, shown, _ = answer("models", "list")
    lines = shown.splitlines()
    assert status == 0
    assert [line.split()[0] for line in lines[1:]] == list(PRESETS)
    line = next(line for line in lines if line.startswith("olmoe-7b-a1b"))
    assert line.split()[1:3] == ["6,919,161,856", "1,282,017,280"]
    assert line.endswith("OlmoeForCausalLM")


def test_the_list_as_json_is_one_object(answer):
    status, shown, _ = answer("models", "list", "--json")
    presets = json.loads(shown)["presets"]
    assert status == 0
    assert list(presets) == list(PRESETS)
    assert presets["olmo2-1b"]["hugging_face"] == "Olmo2ForCausalLM"


@pytest.mark.parametrize("preset", PRESETS)
def test_counts_as_json_are_integers(preset, answer):
    status, shown, _ = answer("models", "params", preset, "--json")
    counts = json.loads(shown)
    assert status == 0
    assert {"total", "active", "non_embedding"} <= counts.keys()
    assert all(type(number) is int for number in counts.values())
    assert counts["embedding"] + counts["non_embedding"] == counts["total"]
    assert counts["padded_vocab_size"] % 128 == 0


def test_fields_of_a_preset_can_be_changed(answer):
    _, shown, _ = answer("models", "params", "olmo2-1b", "vocab_size=100352", "--json")
    assert json.loads(shown)["total"] == 1_484_916_736
    _, whole, _ = answer("models", "params", "olmoe-7b-a1b", "--json")
    _, one, _ = answer("models", "params", "olmoe-7b-a1b", "moe.top_k=1", "--json")
    assert json.loads(one)["total"] == json.loads(whole)["total"]
    assert json.loads(one)["active"] < json.loads(whole)["active"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["olmo-1b"], "olmo2-1b"),
        (["olmo2-1b", "vocabulary=3"], "vocab"),
        (["olmo2-1b", "moe.top_k=3"], "moe"),
        (["olmo2-1b", "32"], "not an override"),
    ],
)
def test_a_mistake_is_one_message_and_exit_status_2(arguments, message, answer):
    status, shown, said = answer("models", "params", *arguments)
    assert (status, shown) == (2, "")
    assert message in said
    assert "Traceback" not in said
