import json

import pytest

from megatron_synth.blending import BlendConfig, CorpusSize, Plan, solve
from megatron_synth.config import DataError, RunError


def make_plan(content="a1", seed=0, **settings):
    config = BlendConfig.model_validate(
        {
            "budget": 4096,
            "sequence_length": 16,
            "global_batch_size": 4,
            "seed": seed,
            "corpora": {"synthetic": {"epochs": 1}, "organic": {"max_epochs": 50}},
            **settings,
        }
    )
    sizes = {"synthetic": CorpusSize(500, 9, content), "organic": CorpusSize(1000, 20, "b")}
    return solve(config, sizes)


def test_json_round_trip(tmp_path):
    plan = make_plan()
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again == plan and again.hash == plan.hash
    assert json.loads((tmp_path / "plan.json").read_text())["hash"] == plan.hash


def test_a_plan_that_was_edited_or_is_none_is_refused(tmp_path):
    path = tmp_path / "plan.json"
    make_plan().save(path)
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(DataError, match="was changed since it was written"):
        Plan.load(path)
    for text in ("{", "[]", '{"hash": "x"}', '{"hash": "x", "steps": "many"}'):
        path.write_text(text)
        with pytest.raises(DataError, match="not a blend plan"):
            Plan.load(path)
    with pytest.raises(DataError, match="no such plan"):
        Plan.load(tmp_path / "nowhere.json")


def test_a_save_that_fails_leaves_the_plan_that_was_there(tmp_path, monkeypatch):
    plan, path = make_plan(), tmp_path / "plan.json"
    plan.save(path)

    def full(_descriptor):
        raise OSError(28, "no space")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match="cannot write"):
        make_plan(seed=5).save(path)
    monkeypatch.undo()
    assert Plan.load(path) == plan
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_the_hash_covers_what_decides_the_samples():
    plan = make_plan()
    assert plan.hash == make_plan().hash
    others = [
        make_plan(content="a2"),
        make_plan(seed=1),
        make_plan(budget=4000),
        make_plan(sequence_length=8),
        make_plan(global_batch_size=2),
        make_plan(attention="document"),
        make_plan(corpora={"synthetic": {"epochs": 2}, "organic": {}}),
        make_plan(corpora={"organic": {}, "synthetic": {"epochs": 1}}),
        make_plan(corpora={"synthetic": {"epochs": 1}, "organic": {"reshuffle": False}}),
    ]
    assert len({plan.hash, *(other.hash for other in others)}) == 1 + len(others)


def test_the_hash_leaves_out_what_does_not():
    capped = make_plan(corpora={"synthetic": {"epochs": 1, "max_epochs": 1}, "organic": {}})
    assert capped.hash == make_plan().hash


def test_a_plan_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        make_plan().seed = 4


def test_the_table_says_what_a_weight_counts_and_has_every_figure():
    lines = make_plan().table().splitlines()
    assert "64 steps x 4 windows x 16 tokens = 4,096 tokens" in lines[0]
    assert "tokens after packing" in lines[1]
    cells = {line.split()[0]: " ".join(line.split()[1:]) for line in lines[3:]}
    assert cells["corpus"] == (
        "stream asked documents tokens windows/epoch dropped/epoch windows trained tokens share "
        "epochs cap"
    )
    # (500 - 1) // 16 = 31 windows, 3 tokens left; 256 - 31 = 225 windows of 62 an epoch
    assert cells["synthetic"] == "synthetic epochs 1 9 500 31 3 31 496 12.11 % 1 -"
    assert cells["organic"] == ("organic fills the rest 20 1,000 62 7 225 3,600 87.89 % 3.629 50")
    assert cells["total"] == "256 4,096 100.00 %"


def test_a_plan_of_another_format_is_refused_by_its_number(tmp_path):
    path = tmp_path / "plan.json"
    make_plan().save(path)
    content = {**json.loads(path.read_text()), "format": 99}
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"of format 99, this version reads \d+"):
        Plan.load(path)
