"""Training on a CPU: attention, the loop's own cost, waiting for data, saving checkpoints.

    python tools/benchmarks/training.py --work /tmp/training [--only attention loop saving]

attention: forward and backward of a model with this project's layers (attention on
`scaled_dot_product_attention`) against Megatron-Core's own local layers, same weights and tokens.
loop: steps of `train` (packed corpus, metrics, progress, watchdog and all) against a bare loop of
Megatron-Core's forward-backward function and optimizer on the same batches, which it holds in
memory; the losses have to agree. The share of a step that is spent waiting for data is of the same
runs.
saving: how long training of 110M parameters (float32, with the optimizer's state) stands still for
a checkpoint: written in the background, written at once, and by Megatron-Core's own strategy.

Each pair takes turns, --repeat times; the figure is the median. One thread computes.
"""

import argparse
import contextlib
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import torch
from blending_corpora import MadeCorpus
from megatron.core import dist_checkpointing
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_synth.blending import (
    BlendConfig,
    BlendedStreams,
    Budget,
    CorpusConfig,
    corpus_size,
    solve,
)
from megatron_synth.models import ModelConfig, build_model, count_parameters
from megatron_synth.runs import Progress, read_metrics
from megatron_synth.runtime import initialize
from megatron_synth.training import TrainConfig, train
from megatron_synth.training.batches import BatchPlan, read_batch
from megatron_synth.training.checkpoints import weights_of
from megatron_synth.training.optimizer import make_optimizer, set_step, wrap_for_training
from megatron_synth.training.optimizer_state import optimizer_state

ATTENTION = ModelConfig(
    num_layers=4, hidden_size=512, num_attention_heads=8, ffn_hidden_size=1408, vocab_size=4096
)
LOOP = ModelConfig(preset="quickstart-1m")
SAVING = ModelConfig(
    num_layers=12, hidden_size=768, num_attention_heads=12, ffn_hidden_size=2048, vocab_size=16_384
)
_WARM_UP = 3  # steps and rounds that are not counted


def attention(options: argparse.Namespace) -> None:
    """Whole model, forward and backward."""
    for length in (1024, 2048):
        tokens = torch.randint(0, 4096, (1, length + 1), generator=torch.Generator().manual_seed(0))
        ours = _model(ATTENTION, length)
        local = get_gpt_layer_local_spec(normalization="RMSNorm")
        with mock.patch("megatron_synth.models.build.block_spec", return_value=local):
            theirs = _model(ATTENTION, length)
        seconds: dict[str, list[float]] = {"ours": [], "Megatron-Core": []}
        losses = {}
        for _ in range(options.repeat + 1):
            for name, model in (("ours", ours), ("Megatron-Core", theirs)):
                taken, losses[name] = _forward_backward(model, tokens)
                seconds[name].append(taken)
        difference = abs(losses["ours"] - losses["Megatron-Core"])
        assert difference < 1e-4, f"losses differ by {difference}"
        mine, peer = (statistics.median(taken[1:]) for taken in seconds.values())
        print(
            f"attention, S {length}: ours {mine:.2f} s, Megatron-Core's local layers {peer:.2f} s, "
            f"ratio {peer / mine:.2f}; losses differ by {difference:.1e}"
        )


def _model(config: ModelConfig, length: int) -> Any:
    return build_model(config, sequence_length=length, seed=0)


def _forward_backward(model: Any, tokens: torch.Tensor) -> tuple[float, float]:
    length = tokens.shape[1] - 1
    model.zero_grad()
    began = time.perf_counter()
    loss = model(
        input_ids=tokens[:, :-1],
        position_ids=torch.arange(length)[None],
        attention_mask=None,
        labels=tokens[:, 1:],
    ).mean()
    loss.backward()
    return time.perf_counter() - began, loss.item()


class Clock(Progress):
    """When each step was done."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def update(self, done: float, note: str = "") -> None:
        """Note the time."""
        self.times.append(time.perf_counter())
        super().update(done, note)

    @property
    def steps(self) -> list[float]:
        """Seconds from one step's end to the next."""
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]


def loop(options: argparse.Namespace) -> None:
    """`train` against a bare loop."""
    config = TrainConfig(
        steps=options.steps, sequence_length=512, save_every=10**6, eval_every=10**6
    )
    corpus = MadeCorpus("tokens", 4_000, 4_000_000, filled=True, vocabulary=LOOP.vocab_size)
    data = _streams(corpus, config, options.work)
    ratios, waits, ours, theirs = [], [], [], []
    for number in range(options.repeat):
        out = options.work / f"loop-{number}"
        shutil.rmtree(out, ignore_errors=True)
        clock = Clock()
        train(config, LOOP, data, out, clock, data_hash="benchmark")
        records = read_metrics(out / "metrics.jsonl")
        times, losses = _bare_loop(config, data)
        worst = max(abs(r["loss"] / loss - 1) for r, loss in zip(records, losses, strict=True))
        assert worst < 1e-5, f"losses differ by {worst}"
        ours.append(statistics.median(clock.steps[_WARM_UP:]))
        theirs.append(statistics.median(times[_WARM_UP:]))
        ratios.append(ours[-1] / theirs[-1])
        counted = records[_WARM_UP:]
        waits.append(sum(r["data_seconds"] for r in counted) / sum(r["seconds"] for r in counted))
    print(
        f"loop: a step of train {statistics.median(ours):.4f} s, of the bare loop "
        f"{statistics.median(theirs):.4f} s, overhead {100 * (statistics.median(ratios) - 1):+.2f} "
        f"% (pairs: {', '.join(f'{100 * (r - 1):+.1f}' for r in ratios)})"
    )
    print(f"data: {100 * statistics.median(waits):.3f} % of a step is waiting for data")


def _streams(corpus: MadeCorpus, config: TrainConfig, work: Path) -> BlendedStreams:
    corpus.make(work)
    size = corpus_size(corpus.prefix(work))
    blend = BlendConfig(
        budget=Budget(steps=config.steps),
        sequence_length=config.sequence_length,
        global_batch_size=config.global_batch_size,
        corpora={corpus.name: CorpusConfig()},
    )
    plan = solve(blend, {corpus.name: size})
    return BlendedStreams(plan, {corpus.name: corpus.prefix(work)})


def _bare_loop(config: TrainConfig, data: Any) -> tuple[list[float], list[float]]:
    """Seconds and loss of every step; what a Megatron-Core user would write, and nothing more."""
    initialize(threads=config.cpu_threads)
    wrapped = wrap_for_training(_model(LOOP, config.sequence_length))
    optimizer = make_optimizer(wrapped, config.optimizer, config.schedule.peak)
    plan = BatchPlan(config.global_batch_size, config.micro_batch_size, 1, 0)
    size = config.global_batch_size
    batches = [read_batch(data, plan, step * size, 512) for step in range(config.steps)]
    schedule, run = config.schedule_in_steps, get_forward_backward_func()
    times, losses = [], []
    for step, batch in enumerate(batches, start=1):
        began = time.perf_counter()
        wrapped.zero_grad_buffer()
        optimizer.zero_grad()
        results = run(
            forward_step_func=_forward_step,
            data_iterator=iter(batch),
            model=wrapped,
            num_microbatches=len(batch),
            seq_length=config.sequence_length,
            micro_batch_size=config.micro_batch_size,
            forward_only=False,
        )
        set_step(optimizer, config.optimizer, schedule, step, config.steps)
        optimizer.step()
        losses.append(sum(r.item() for r in results) / (size * config.sequence_length))
        times.append(time.perf_counter() - began)
    return times, losses


def _forward_step(iterator: Iterator[Any], model: Any) -> tuple[torch.Tensor, Callable[..., Any]]:
    batch = next(iterator)
    losses = model(batch["tokens"], batch["position_ids"], None, labels=batch["labels"])

    def loss(output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        total = output.sum()
        return total, torch.tensor(output.numel(), dtype=torch.int), total.detach()

    return losses, loss


def saving(options: argparse.Namespace) -> None:
    """How long training stands still."""
    parameters = count_parameters(SAVING).total
    for background in (True, False):
        config = TrainConfig(
            steps=12,
            sequence_length=256,
            micro_batch_size=1,
            global_batch_size=1,
            save_every=4,
            eval_every=10**6,
            keep_checkpoints=1,
            save_in_background=background,
        )
        corpus = MadeCorpus("words", 1_000, 1_000_000, filled=True, vocabulary=SAVING.vocab_size)
        data, out = _streams(corpus, config, options.work), options.work / "saving"
        shutil.rmtree(out, ignore_errors=True)
        clock = Clock()
        with _peak_memory() as peak:
            train(config, SAVING, data, out, clock, data_hash="benchmark")
        # Step n's gap runs from its end to the end of step n + 1: a save lies in those of 4 and 8.
        gaps = dict(enumerate(clock.steps, start=1))
        usual = statistics.median(gaps[n] for n in (2, 3, 7, 11))
        stood = [gaps[n] - usual for n in (4, 8)]
        during = [gaps[n] - usual for n in (5, 6, 9, 10)]
        how = "in the background" if background else "at once"
        print(
            f"saving {parameters / 1e6:.0f}M parameters {how}: a step {usual:.2f} s, with a save "
            f"{max(stood):+.2f} s at most, the two after it {sum(during) / 2:+.2f} s together; "
            f"peak memory {peak[0] / 1e9:.1f} GB"
        )
    shutil.rmtree(options.work / "saving")
    print(f"saving by Megatron-Core's own strategy: {_stock_save(options.work):.2f} s")


def _stock_save(work: Path) -> float:
    """Seconds of `dist_checkpointing.save` with its default strategy, same model and optimizer."""
    wrapped = wrap_for_training(_model(SAVING, 256))
    config = TrainConfig(steps=2)
    optimizer = make_optimizer(wrapped, config.optimizer, config.schedule.peak)
    optimizer.step()  # makes its state
    weights = weights_of(wrapped.module)
    content = {"model": weights, "optimizer": optimizer_state(optimizer, weights)}
    folder = work / "stock"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began = time.perf_counter()
    dist_checkpointing.save(content, str(folder))
    taken = time.perf_counter() - began
    shutil.rmtree(folder)
    return taken


@contextlib.contextmanager
def _peak_memory() -> Iterator[list[int]]:
    """The largest resident memory of this process inside the block, bytes."""
    peak, done = [0], threading.Event()

    def sample() -> None:
        while not done.wait(0.05):
            peak[0] = max(peak[0], psutil.Process().memory_info().rss)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield peak
    finally:
        done.set()
        sampler.join()


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = {"attention": attention, "loop": loop, "saving": saving}
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--only", nargs="+", choices=[*parts], default=[*parts])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--steps", type=int, default=25, help="of a run of `loop`")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    initialize(threads=1)
    for name in options.only:
        parts[name](options)


if __name__ == "__main__":
    main()
