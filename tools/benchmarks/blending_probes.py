"""What `blending.py` measures, each in a process of its own: NAME and arguments as JSON.

Prints one JSON object. Times that end in `_at` are of CLOCK_MONOTONIC, which all processes of a
machine share, so that the caller can count from the start of the process; `cpu_seconds` are of
all threads, imports included.
"""

import itertools
import json
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 2048


def plan(blend: dict[str, Any], prefixes: dict[str, str], out: str) -> dict[str, Any]:
    """Measure the corpora, solve the plan, save it."""
    table = _solve(blend, prefixes, Path(out)).table()
    return {"ready_at": time.monotonic(), "table": table}


def serve(
    plan_file: str,
    prefixes: dict[str, str],
    sample: int,
    blend: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Open the plan (solve it first, where `blend` is given), check all, serve one sample."""
    from megatron_synth.blending.plan import Plan
    from megatron_synth.blending.streams import BlendedStreams

    if blend is None:
        solved = Plan.load(Path(plan_file))
    else:
        solved = _solve(blend, prefixes, Path(plan_file))
    opened_at = time.monotonic()  # imports are over, and the plan is there
    streams = BlendedStreams(solved, prefixes)
    checked_at = time.monotonic()
    served = streams[sample]
    return {
        "opened_at": opened_at,
        "checked_at": checked_at,
        "ready_at": time.monotonic(),
        "corpus": solved.corpora[int(served["dataset_id"])].name,
    }


def arithmetic(
    plan_file: str, prefixes: dict[str, str], seconds: float, every_epoch: bool
) -> dict[str, Any]:
    """Samples a second of index arithmetic on one core: which tokens sample i holds, none read."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    from megatron_synth.blending.plan import Plan
    from megatron_synth.blending.schedule import schedule_of
    from megatron_synth.blending.sizes import path_prefix
    from megatron_synth.blending.windows import CorpusWindows

    solved = Plan.load(Path(plan_file))
    schedule = schedule_of(solved)
    corpora = []
    for corpus in solved.corpora:
        path = path_prefix(prefixes[corpus.name])
        corpora.append(CorpusWindows(IndexedDataset(str(path)), path, solved, corpus))
    began = time.monotonic()
    for corpus, opened in zip(solved.corpora, corpora, strict=True):
        epochs = int(np.ceil(corpus.epochs)) if every_epoch else 1
        for epoch in range(epochs):
            _consume(opened.pieces(np.array([epoch * corpus.windows_per_epoch])))
    built = time.monotonic() - began

    def locate(samples: np.ndarray) -> None:
        of, numbers = schedule.locate(samples)
        for index in np.unique(of).tolist():
            _consume(corpora[index].pieces(numbers[of == index]))

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rng = np.random.default_rng(0)
    first_epoch = min(int(solved.samples / max(1.0, c.epochs)) for c in solved.corpora)
    first_epoch = first_epoch // 2  # in its second half the next epoch's index is built
    orders: dict[str, Callable[[int], np.ndarray]] = {
        "in order": lambda i: np.arange(i * BATCH, (i + 1) * BATCH),
        "at random within an epoch": lambda _: rng.integers(0, first_epoch, BATCH),
    }
    if every_epoch:
        orders["at random within the plan"] = lambda _: rng.integers(0, solved.samples, BATCH)
    wall, cpu = {}, {}
    for name, samples in orders.items():
        locate(samples(0))
        cpu_began, began = time.process_time(), time.monotonic()
        rate = _rate(lambda i, samples=samples: locate(samples(i)), seconds) * BATCH
        wall[name] = rate
        share = (time.process_time() - cpu_began) / (time.monotonic() - began)
        cpu[name] = rate / share  # as if other processes had left us the core
    return {
        "orders_seconds": built,
        "samples_per_second": wall,
        "samples_per_cpu_second": cpu,
    }


def schedule(samples: int, batch: int, shares: list[float], seconds: float) -> dict[str, Any]:
    """The schedule alone: the last sample first, then in order, then at random."""
    from megatron_synth.blending.schedule import Schedule

    Schedule([3, 1], 4, 1).locate(np.arange(4))  # compile
    steps = samples // batch
    windows = [int(share * steps * batch) for share in shares]
    windows.append(steps * batch - sum(windows))
    began = time.monotonic()
    order = Schedule(windows, steps, batch)
    order.locate(np.array([steps * batch - 1]))
    last = time.monotonic() - began
    rng = np.random.default_rng(0)
    fresh = Schedule(windows, steps, batch)
    rates = {
        "in order": _rate(lambda i: fresh.locate(np.arange(i * BATCH, (i + 1) * BATCH)), seconds),
        "at random": _rate(lambda _: order.locate(rng.integers(0, steps * batch, BATCH)), seconds),
    }
    return {
        "last_sample_seconds": last,
        "samples_per_second": {name: rate * BATCH for name, rate in rates.items()},
    }


def stock(
    prefixes: list[str], weights: list[int], samples: int, sequence_length: int, cache: str
) -> dict[str, Any]:
    """Megatron-Core's builder and datasets, until sample 0 is served."""
    import torch.distributed as dist

    # BlendedDataset asks for its rank before it writes its cache.
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    dataset = _stock(prefixes, weights, samples, sequence_length, cache)
    dataset[0]
    return {"ready_at": time.monotonic(), "samples": len(dataset)}


def serving(
    prefix: str,
    sequence_length: int,
    batches: list[int],
    seconds: float,
    repeat: int,
    cache: str,
) -> dict[str, Any]:
    """Windows a second through a DataLoader, ours and stock's in turn, the best of `repeat`.

    Ours twice: with PyTorch's own collate, as stock's, and with `blending.collate`.

    Those a CPU second too, of loader and workers together, the start of the workers included.
    """
    from torch.utils.data import Dataset

    from megatron_synth.blending.batch import collate
    from megatron_synth.blending.streams import BlendedStreams

    blend = {
        "sequence_length": sequence_length,
        "global_batch_size": 256,
        "corpora": {"made": {"epochs": 4}},
    }
    solved = _solve(blend, {"made": prefix}, None)
    streams = BlendedStreams(solved, {"made": prefix})
    datasets: dict[str, tuple[Dataset[Any], Any]] = {
        "ours": (streams, collate),
        "ours_default": (streams, None),
        "stock": (_stock([prefix], None, solved.samples, sequence_length, cache), None),
    }
    rows = []
    for workers, batch in itertools.product((0, 1, 2), batches):
        best = dict.fromkeys(datasets, (0.0, 0.0))
        for number in range(repeat):
            # Every time other windows, in the dataset's own order.
            order = range(solved.samples * number // repeat, solved.samples)
            for name, (dataset, collate_fn) in datasets.items():
                found = _load(dataset, collate_fn, order, workers, batch, seconds)
                best[name] = (max(best[name][0], found[0]), max(best[name][1], found[1]))
        rows.append({"workers": workers, "batch": batch, **best})
    return {"rows": rows}


def _load(
    dataset: Any, collate_fn: Any, order: range, workers: int, batch: int, seconds: float
) -> tuple[float, float]:
    """Windows a second and a CPU second."""
    from torch.utils.data import DataLoader

    before = os.times()[:4]  # user and system, of this process and of workers that have ended
    batches = iter(
        DataLoader(dataset, batch, sampler=order, num_workers=workers, collate_fn=collate_fn)
    )
    ahead = 1 + 4 * workers  # those that were fetched ahead do not count
    for _ in range(ahead):
        next(batches)
    began = time.monotonic()
    rate = _rate(lambda _, served=batches: next(served), seconds)
    served = ahead + rate * (time.monotonic() - began)
    del batches  # waits for the workers
    cpu = sum(os.times()[:4]) - sum(before)
    return rate * batch, served * batch / cpu


def _solve(blend: dict[str, Any], prefixes: dict[str, str], out: Path | None) -> Any:
    from megatron_synth.blending import BlendConfig, solve
    from megatron_synth.blending.sizes import measure
    from megatron_synth.blending.sources import SourceConfig

    config = BlendConfig.model_validate(blend)
    sizes = {n: measure(SourceConfig(data=Path(p)), where=n) for n, p in prefixes.items()}
    solved = solve(config, sizes)
    if out is not None:
        solved.save(out)
    return solved


class _TokenIds:
    """The part of a tokenizer that stock datasets read: no padding, no end of document."""

    vocab_size = None
    eod = -2
    unique_identifiers: OrderedDict[str, int] = OrderedDict()


def _stock(
    prefixes: list[str], weights: list[int] | None, samples: int, sequence_length: int, cache: str
) -> Any:
    from megatron.core.datasets.blended_megatron_dataset_builder import (
        BlendedMegatronDatasetBuilder,
    )
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    from megatron_synth.blending.sizes import path_prefix

    config = GPTDatasetConfig(
        random_seed=0,
        sequence_length=sequence_length,
        blend=([str(path_prefix(p)) for p in prefixes], weights),
        split="1,0,0",
        path_to_cache=cache,
        tokenizer=_TokenIds(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    sizes = [samples, 0, 0]
    return BlendedMegatronDatasetBuilder(GPTDataset, sizes, lambda: True, config).build()[0]


def _rate(call: Callable[[int], object], seconds: float) -> float:
    """Calls a second, called with 0, 1, 2, ... for about `seconds`."""
    began = time.monotonic()
    calls = 0
    while (passed := time.monotonic() - began) < seconds:
        call(calls)
        calls += 1
    return calls / passed


def _consume(pieces: Iterator[object]) -> None:
    for _ in pieces:
        pass


PROBES: dict[str, Callable[..., dict[str, Any]]] = {
    probe.__name__: probe for probe in (plan, serve, arithmetic, schedule, stock, serving)
}

if __name__ == "__main__":
    found = PROBES[sys.argv[1]](**json.loads(sys.argv[2]))
    print(json.dumps({**found, "cpu_seconds": time.process_time()}), flush=True)
