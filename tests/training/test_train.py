import json
import math

import pytest
import torch
from tiny_training import TINY, Windows, settings, weights_hash

from megatron_synth.config import ConfigError, DataError, RunError
from megatron_synth.runs import Progress, read_metrics
from megatron_synth.training import read_state, train


class CrashError(Exception):
    """What a kill looks like from inside."""


class CrashesAt(Windows):
    def __init__(self, number, index):
        super().__init__(number)
        self.index = index

    def __getitem__(self, index):
        if index >= self.index:
            raise CrashError
        return super().__getitem__(index)


def run(out, windows=None, config=None, model=TINY, data_hash="d", **other):
    data = windows or Windows(400)
    return train(config or settings(), model, data, out, Progress(), data_hash=data_hash, **other)


def losses(out):
    return [(r["step"], r["loss"], r["grad_norm"]) for r in read_metrics(out / "metrics.jsonl")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    result = run(out, validation={"held out": Windows(5)})
    return out, result, weights_hash(result.checkpoint)


def test_it_learns(undisturbed):
    out, _, _ = undisturbed
    first, last = losses(out)[0][1], losses(out)[-1][1]
    assert first == pytest.approx(math.log(256), abs=0.1)
    assert last < first - 0.3


def test_the_result_counts_what_was_done(undisturbed):
    _, result, _ = undisturbed
    assert (result.steps, result.tokens) == (8, 8 * 4 * 32)
    assert result.checkpoint.name == "step_00000008"
    assert result.tokens_per_second == pytest.approx(result.tokens / result.seconds)
    assert set(result.validation) == {"held out"}
    assert 6 * result.parameters.non_embedding < result.flops / result.tokens


def test_metrics_hold_the_loss_by_dataset_beside_the_total(undisturbed):
    out, _, _ = undisturbed
    record = read_metrics(out / "metrics.jsonl")[0]
    assert set(record["loss_by_dataset"]) == {"0", "1"}
    low, high = sorted(record["loss_by_dataset"].values())
    assert low <= record["loss"] <= high
    assert record["lr"] == pytest.approx(1.5e-3)
    assert {"tokens_per_second", "seconds", "data_seconds", "tokens"} <= set(record)


def test_only_the_newest_checkpoints_stay(undisturbed):
    out, _, _ = undisturbed
    names = sorted(p.name for p in (out / "checkpoints").iterdir())
    assert names == ["step_00000006", "step_00000008"]


def test_a_second_call_does_nothing(undisturbed):
    out, result, _ = undisturbed
    before = (out / "metrics.jsonl").read_bytes()
    again = run(out, CrashesAt(400, 0), validation={"held out": Windows(5)})
    assert again == result
    assert (out / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("index", [2, 15, 29])
def test_a_run_that_broke_off_ends_bit_for_bit_the_same(undisturbed, tmp_path, index):
    expected_out, _, expected_hash = undisturbed
    with pytest.raises(CrashError):
        run(tmp_path, CrashesAt(400, index))
    result = run(tmp_path)
    assert losses(tmp_path) == losses(expected_out)  # at least two steps after the resume
    assert weights_hash(result.checkpoint) == expected_hash


def test_a_half_written_checkpoint_is_ignored(undisturbed, tmp_path):
    _, _, expected_hash = undisturbed
    with pytest.raises(CrashError):
        run(tmp_path, CrashesAt(400, 20))
    leftovers = [
        tmp_path / "checkpoints" / name
        for name in (".step_00000006.partial", ".step_00000005.partial", ".step_00000002.removed")
    ]
    for leftover in leftovers:
        leftover.mkdir()
        (leftover / "state.json").write_text("{")
    assert weights_hash(run(tmp_path).checkpoint) == expected_hash
    assert not [leftover for leftover in leftovers if leftover.exists()]


def test_micro_batches_of_another_size_give_the_same_losses(undisturbed, tmp_path):
    out, _, _ = undisturbed
    run(tmp_path, config=settings(micro_batch_size=1))
    for ours, theirs in zip(losses(tmp_path), losses(out), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_the_loss_is_the_mean_over_unmasked_tokens_of_the_whole_batch(tmp_path):
    """A micro-batch with one unmasked token must not weigh as much as a full one."""

    class Uneven(Windows):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            sample["loss_mask"] = torch.ones(32)
            if index % 4 >= 2:
                sample["loss_mask"] = (torch.arange(32) < 1).float()
            return sample

    for size in (1, 4):
        config = settings(steps=3, micro_batch_size=size)
        run(tmp_path / str(size), Uneven(400), config)
    for ours, theirs in zip(losses(tmp_path / "1"), losses(tmp_path / "4"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_masked_tokens_teach_nothing(tmp_path):
    class Corrupt(Windows):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            masked = sample["loss_mask"] == 0
            sample["labels"] = sample["labels"].masked_fill(masked, 255)
            return sample

    config = settings(steps=3)
    clean = run(tmp_path / "clean", config=config)
    corrupt = run(tmp_path / "corrupt", Corrupt(400), config)
    assert weights_hash(clean.checkpoint) == weights_hash(corrupt.checkpoint)


def test_weights_to_start_from_are_used(undisturbed, tmp_path):
    out, result, _ = undisturbed
    schedule = {"kind": "constant", "peak": 1e-6, "warmup_steps": 0}
    config = settings(steps=1, schedule=schedule)
    started = run(tmp_path, config=config, init_from=result.checkpoint)
    assert started.loss < losses(out)[0][1] - 0.3
    assert read_state(started.checkpoint).init_from == str(result.checkpoint)
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert run(moved, config=config, init_from=moved / "elsewhere").loss == started.loss


def test_norms_decay_only_where_asked(tmp_path):
    schedule = {"kind": "constant", "peak": 1e-3, "warmup_steps": 0}
    hashes = set()
    for optimizer in ({}, {"decay_norms": True}, {"decay_embeddings": False}):
        config = settings(steps=2, schedule=schedule, optimizer={"weight_decay": 1.0, **optimizer})
        result = run(tmp_path / str(len(hashes)), config=config)
        hashes.add(weights_hash(result.checkpoint))
    assert len(hashes) == 3


def test_other_data_is_refused_at_a_resume(undisturbed):
    out, _, _ = undisturbed
    with pytest.raises(ConfigError, match="other data"):
        run(out, data_hash="another")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"config": settings(seed=9)}, "seed: 0 before, 9 now"),
        ({"config": settings(steps=9)}, "steps: 8 before"),
        ({"model": TINY.model_copy(update={"qk_norm": True})}, "qk_norm: False there"),
    ],
)
def test_another_run_is_refused_at_a_resume(undisturbed, changed, message):
    out, _, _ = undisturbed
    with pytest.raises(ConfigError, match=message):
        run(out, **changed)


def test_too_little_data_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(DataError, match="has 31 windows, 8 steps of 4 need 32"):
        run(tmp_path / "out", Windows(31))
    assert not (tmp_path / "out").exists()


def test_a_batch_with_every_token_masked_is_refused(tmp_path):
    class Masked(Windows):
        def __getitem__(self, index):
            return {**super().__getitem__(index), "loss_mask": torch.zeros(32)}

    with pytest.raises(DataError, match="every token of step 1 is masked"):
        run(tmp_path, Masked(400))


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_checkpoint(tmp_path):
    class Poisoned(Windows):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            if index == 17:  # step 5
                sample["loss_mask"] = torch.full((32,), float("inf"))
            return sample

    with pytest.raises(RunError, match="the loss of step 5 is") as caught:
        run(tmp_path, Poisoned(400))
    assert "schedule.peak" in str(caught.value)
    kept = tmp_path / "checkpoints" / "step_00000003"
    assert read_state(kept).step == 3
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 4


def test_bf16_on_a_cpu_is_refused(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is CUDA here")
    with pytest.raises(ConfigError, match="bf16"):
        run(tmp_path, config=settings(precision="bf16"))


def test_every_checkpoint_holds_the_account_of_its_step(tmp_path):
    run(tmp_path, config=settings(steps=4), account=lambda step: {"D": 10 * step})
    for step in (3, 4):
        path = tmp_path / "checkpoints" / f"step_{step:08d}" / "state.json"
        state = json.loads(path.read_text())
        assert state["account"] == {"D": 10 * step}
        assert (state["step"], state["samples"], state["data_hash"]) == (step, 4 * step, "d")


def test_a_validation_loss_that_is_not_finite_stops_the_run(tmp_path):
    class Poisoned(Windows):
        def __getitem__(self, index):
            return {**super().__getitem__(index), "loss_mask": torch.full((32,), float("inf"))}

    with pytest.raises(RunError, match=r"validation loss \(held out\) of step 4 is nan"):
        run(tmp_path, validation={"held out": Poisoned(5)})


def test_without_clipping_the_gradient_norm_is_known_and_nothing_is_scaled(tmp_path):
    config = settings(steps=2, optimizer={"clip": 0})
    free = run(tmp_path / "free", config=config)
    wide = run(tmp_path / "wide", config=settings(steps=2, optimizer={"clip": 1e6}))
    assert losses(tmp_path / "free") == losses(tmp_path / "wide")
    assert losses(tmp_path / "free")[0][2] > 0
    assert weights_hash(free.checkpoint) == weights_hash(wide.checkpoint)


def test_another_precision_is_refused_at_a_resume(tmp_path):
    result = run(tmp_path, config=settings(steps=2))
    path = result.checkpoint / "state.json"
    path.write_text(path.read_text().replace('"float32"', '"bfloat16"'))
    with pytest.raises(ConfigError, match="trained in bfloat16, this run would go on in float32"):
        run(tmp_path, config=settings(steps=2))


def test_the_same_shape_spelled_out_is_the_same_model(undisturbed, tmp_path):
    out, result, _ = undisturbed
    spelled = TINY.model_copy(update={"num_query_groups": 2, "head_dim": 32})
    again = run(out, model=spelled, validation={"held out": Windows(5)})
    assert again.loss == result.loss


def test_a_warm_up_longer_than_the_run_is_refused(tmp_path):
    config = settings().model_copy(update={"steps": 1})
    with pytest.raises(ConfigError, match="warmup_steps=2 are more than the run's 1 steps"):
        run(tmp_path, config=config)


def test_progress_tells_tokens_and_the_loss(tmp_path):
    progress = Progress()
    train(settings(steps=2), TINY, Windows(400), tmp_path, progress, data_hash="d")
    assert progress.state.done == progress.state.total == 2 * 4 * 32
    assert progress.state.note.startswith("loss 5.")
