"""Synthesizer tuning by the verb `train`: pairs in the place of plans."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from megatron_synth.cli import app, main
from megatron_synth.packing import PackConfig, pack
from megatron_synth.runs import Progress, read_metrics
from megatron_synth.tokens import Tokenizer, train_tokenizer

SIZES = {
    "num_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 2,
    "ffn_hidden_size": 96,
}
TRAINING = {
    **{"steps": 6, "sequence_length": 128, "global_batch_size": 2, "micro_batch_size": 2},
    **{"save_every": 2, "keep_every": 2, "eval_every": 3},
    "schedule": {"kind": "constant", "peak": 3e-3, "warmup_steps": 0},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A packed corpus, its tokenizer, and pairs of its documents."""
    folder = tmp_path_factory.mktemp("world")
    random = np.random.default_rng(0)
    words = [f"word{n}" for n in range(40)]
    texts = [" ".join(random.choice(words, random.integers(8, 20))) for _ in range(60)]
    train_tokenizer(texts, 300, folder / "tokenizer")
    train_tokenizer(["other texts, of which another is made"] * 9, 270, folder / "other")
    rows = [json.dumps({"id": str(n), "text": text}) for n, text in enumerate(texts)]
    (folder / "c.jsonl").write_text("\n".join(rows) + "\n")
    tokenizer = Tokenizer.load(folder / "tokenizer")
    pack(str(folder / "c.jsonl"), tokenizer, folder / "packed", Progress(), PackConfig())
    pairs = [(n, (n + 1 + 7 * (n % 3)) % 60) for n in range(60)]
    columns = {"d1": [a for a, _ in pairs], "d2": [b for _, b in pairs]}
    pq.write_table(pa.table(columns), folder / "pairs.parquet")
    return folder


@pytest.fixture
def train(world, monkeypatch, capsys):
    """train(out, *overrides, **changes) -> (status, stdout, stderr)."""
    monkeypatch.chdir(world)

    def train(out, *overrides, **changes):
        tree = {
            "model": SIZES,
            "training": TRAINING,
            "tokenizer": "tokenizer",
            "pairs": {"data": "packed", "file": "pairs.parquet", "validation_pairs": 3},
            **changes,
        }
        tree = {name: value for name, value in tree.items() if value is not None}
        (world / "tune.yaml").write_text(yaml.safe_dump(tree))
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            arguments = ["train", "tune.yaml", *overrides, "--out", str(out), "--json"]
            main(lambda: app(arguments))
        shown = capsys.readouterr()
        return leaving.value.code or 0, shown.out, shown.err

    return train


def test_a_synthesizer_is_tuned_from_a_checkpoint_with_the_loss_on_held_out_pairs(train, tmp_path):
    status, out, err = train(tmp_path / "first")
    assert status == 0, err
    answer = json.loads(out)
    assert answer["steps"] == 6
    assert set(answer["validation"]) == {"held_out_pairs"}
    records = read_metrics(tmp_path / "first" / "metrics.jsonl")
    assert [r["step"] for r in records if r.get("validation")] == [3, 6]
    kept = sorted(p.name for p in (tmp_path / "first" / "checkpoints").iterdir())
    assert kept == ["step_00000002", "step_00000004", "step_00000006"]  # to compare their texts
    validation = pq.read_table(tmp_path / "first" / "pairs" / "validation.parquet")
    assert validation.num_rows == 3

    status, out, err = train(tmp_path / "second", model=None, init_from=answer["checkpoint"])
    assert status == 0, err
    first = read_metrics(tmp_path / "second" / "metrics.jsonl")[0]
    assert first["loss"] < records[0]["loss"]


def test_the_same_command_goes_on_and_other_pairs_are_refused(train, tmp_path, world):
    whole = json.loads(train(tmp_path / "whole")[1])
    status, _, err = train(tmp_path / "two", "training.stopping.max_hours=1e-9")
    assert status == 75, err
    again = json.loads(train(tmp_path / "two")[1])
    assert (again["loss"], again["validation"]) == (whole["loss"], whole["validation"])
    status, _, err = train(tmp_path / "two", "pairs.seed=5", "training.steps=8")
    assert status == 2
    assert "data" in err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": None}, "pairs need the tokenizer"),
        ({"tokenizer": "other"}, "was packed with another tokenizer"),
        ({"plans": ["a.json"]}, "set plans, blend or pairs"),
        ({"model": None}, "Set init_from"),
        ({"pairs": {"data": "packed", "file": "nowhere.parquet"}}, "no such pairs file"),
    ],
)
def test_mistakes_get_one_message(train, tmp_path, changes, message):
    status, _, err = train(tmp_path / "o", **changes)
    assert status == 2
    assert message in err
    assert "Traceback" not in err
