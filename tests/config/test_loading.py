from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from megatron_synth.config import (
    Config,
    ConfigError,
    Count,
    apply_overrides,
    format_count,
    load_config,
    parse_config,
    parse_count,
)


class Optimizer(Config):
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)


class Training(Config):
    tokens: Count = 1_000_000
    optimizer: Optimizer = Optimizer()
    streams: dict[str, Optimizer] = {}


class Experiment(Config):
    name: str
    training: Training = Training()


def write(folder: Path, text: str) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(text)
    return path


def test_values_come_from_the_file_then_from_overrides_in_order(tmp_path: Path) -> None:
    path = write(tmp_path, "name: a\ntraining: {tokens: 2M}\n")
    config = load_config(path, Experiment, ["training.optimizer.lr=1e-2", "name=b", "name=c"])
    assert config.name == "c"
    assert config.training.tokens == 2_000_000
    assert config.training.optimizer.lr == 0.01


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.tokns=1", ["unknown key 'training.tokns'", "did you mean 'tokens'"]),
        ("training.optimizer.le=1", ["'training.optimizer.le'", "'lr'"]),
        ("training.streams.a.bets=1", ["'training.streams.a.bets'", "'betas'"]),
        ("zzz=1", ["unknown key 'zzz'", "valid keys: name, training"]),
        ("training.tokens=many", ["'training.tokens'", "is not a count"]),
        ("training.tokens=-1", ["greater than or equal to 0", "-1"]),
        ("name.first=1", ["name is 'a'", "no keys of its own"]),
        ("name", ["is not an override", "key.subkey=value"]),
        ("name=[", ["not YAML"]),
    ],
)
def test_a_wrong_key_or_value_is_named_with_the_nearest_valid_one(
    tmp_path: Path, override: str, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, "name: a\n"), Experiment, [override])
    for word in words:
        assert word in str(caught.value)
    assert caught.value.exit_status == 2


def test_a_missing_value_and_every_other_fault_stand_in_one_message() -> None:
    with pytest.raises(ConfigError, match="'name' must be set; unknown key 'trainin'"):
        parse_config({"trainin": 1}, Experiment, where="x.yaml")


@pytest.mark.parametrize("text", ["- a\n", "a: [\n", "just text\n", ""])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"experiment\.yaml"):
        load_config(write(tmp_path, text), Experiment)


def test_a_missing_file_is_refused_and_its_neighbours_are_named(tmp_path: Path) -> None:
    write(tmp_path, "name: a\n")
    with pytest.raises(ConfigError, match=r"no such file\n.*experiment\.yaml"):
        load_config(tmp_path / "experimnt.yaml", Experiment)


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Experiment(name="a").name = "b"  # type: ignore[misc]


keys = st.text("abc", min_size=1, max_size=2)


@given(st.dictionaries(keys, st.dictionaries(keys, st.integers())), keys, keys, st.integers())
def test_an_override_changes_its_key_and_nothing_else(
    tree: dict[str, dict[str, int]], outer: str, inner: str, value: int
) -> None:
    before = {k: dict(v) for k, v in tree.items()}
    result = apply_overrides(tree, [f"{outer}.{inner}={value}"])
    assert tree == before
    assert result[outer][inner] == value
    del result[outer][inner]
    assert result | {outer: {}} == {
        k: {i: x for i, x in v.items() if (k, i) != (outer, inner)} for k, v in before.items()
    } | {outer: {}} or result[outer] == {k: v for k, v in before[outer].items() if k != inner}


@pytest.mark.parametrize(
    ("text", "number"),
    [("1", 1), ("1_000", 1000), ("1.2M", 1_200_000), ("200B", 200 * 10**9), ("1t", 10**12)],
)
def test_a_count_may_carry_a_suffix(text: str, number: int) -> None:
    assert parse_count(text) == number


@pytest.mark.parametrize("text", ["1.2", "1.23456789K", "M", "-3", "1 000", ""])
def test_a_count_that_is_not_whole_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a"):
        parse_count(text)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (9_999, "9,999"), (12_345, "12.3K"), (1_200_000, "1.2M"), (10**12, "1T")],
)
def test_a_count_is_written_with_three_digits(number: int, text: str) -> None:
    assert format_count(number) == text


@given(st.integers(0, 10**15))
def test_a_written_count_is_within_half_a_percent(number: int) -> None:
    text = format_count(number).replace(",", "")
    assert abs(int(float(parse_count(text) or 0)) - number) <= 0.005 * number  # type: ignore[arg-type]


def test_overrides_reach_items_of_lists_and_keys_with_nothing_after_the_colon():
    tree = {"phases": [{"name": "a"}, {"name": "b", "corpora": {"organic": None}}]}
    changed = apply_overrides(tree, ["phases.1.corpora.organic.epochs=2", "phases.0.name=first"])
    assert changed == {
        "phases": [{"name": "first"}, {"name": "b", "corpora": {"organic": {"epochs": 2}}}]
    }
    assert tree["phases"][0] == {"name": "a"}
    for wrong in ("phases.2.name=c", "phases.last.name=c"):
        with pytest.raises(ConfigError, match="phases is a list of 2, which has no"):
            apply_overrides(tree, [wrong])
