"""Several short runs in the same ranks, a reduction of Megatron-Core left out of some of them.

Imported by tests, and a script, started by torchrun or alone: layout_runs.py OUT RUNS_JSON. Each
of the runs has `name`, `model`, `train` and, where a reduction is left out, `without`. Starting
ranks costs far more than a run does, so all runs that need the same number of ranks share them. A
run of a name that was there before goes on from its checkpoint; with `resave` it first writes that
checkpoint again. Rank r writes which windows it read to OUT/<name>/windows_<r>.json.
"""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from gathered_attention import context_parallel
from tiny_training import SETTINGS, TINY, Windows

from megatron_synth.models import ModelConfig, build_model
from megatron_synth.runs import Progress
from megatron_synth.runtime import cpu_shim, initialize
from megatron_synth.training import TrainConfig, read_state, train
from megatron_synth.training.checkpoints import latest_checkpoint, load_checkpoint
from megatron_synth.training.optimizer import make_optimizer, wrap_for_training
from megatron_synth.training.resume import resolve_dtype
from megatron_synth.training.saving import Retention, save_checkpoint

STEPS = 20
DENSE = TINY.model_copy(update={"qk_norm": True, "num_query_groups": 2, "num_attention_heads": 4})
MODELS = {
    "dense": DENSE.model_dump(),
    "tied": {**DENSE.model_dump(), "tie_embeddings": True},
    "moe": {**DENSE.model_dump(), "moe": {"num_experts": 4, "top_k": 2}},
    "deep": {**DENSE.model_dump(), "num_layers": 4},
    "deep tied": {**DENSE.model_dump(), "num_layers": 4, "tie_embeddings": True},
    "deep moe": {**DENSE.model_dump(), "num_layers": 4, "moe": {"num_experts": 4, "top_k": 2}},
}
TENSOR, PIPELINE, EXPERT = "tensor_parallel", "pipeline_parallel", "expert_parallel"
LAYOUTS = {
    "one": (1, {}),
    "tensor": (2, {TENSOR: 2}),
    "pipeline": (2, {PIPELINE: 2}),
    "expert": (2, {EXPERT: 2}),
    "data": (2, {}),
    "interleaved": (2, {PIPELINE: 2, "pipeline_chunks": 2}),
    "tensor+interleaved": (4, {TENSOR: 2, PIPELINE: 2, "pipeline_chunks": 2}),
    "context": (2, {"context_parallel": 2}),
    "context+data": (4, {"context_parallel": 2}),
    "data+overlap": (2, {"overlap": True}),
    "expert+allgather": (2, {EXPERT: 2, "moe_dispatcher": "allgather"}),
    "tensor+expert": (2, {TENSOR: 2, EXPERT: 2}),
    "tensor+pipeline": (4, {TENSOR: 2, PIPELINE: 2}),
    "data+expert": (4, {EXPERT: 2}),
}


def described(model, layout, without=None, steps=STEPS):
    train = {
        **SETTINGS,
        **LAYOUTS[layout][1],
        "micro_batch_size": 1,
        "steps": steps,
        "schedule": {"kind": "constant", "peak": 3e-3, "warmup_steps": 2},
        "save_every": 1000,
        "precision": "fp64",
    }
    return {
        "name": f"{model} {layout} {without or 'whole'}",
        "model": MODELS[model],
        "train": train,
        "without": without,
        "ranks": LAYOUTS[layout][0],
    }


def start(out, ranks, runs):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    done = subprocess.run(
        [
            *(sys.executable, "-W", "ignore"),
            *(launcher if ranks > 1 else []),
            *(Path(__file__), out, json.dumps(runs)),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def nothing(*_, **__):
    return None


@contextlib.contextmanager
def no_all_reduce_inside(owner, name, leave_out=lambda tensor: True):
    """Inside `owner.name` all-reduces of the tensors that `leave_out` picks do nothing."""
    original, reduce = getattr(owner, name), dist.all_reduce

    def all_reduce(tensor, *args, **kwargs):
        return None if leave_out(tensor) else reduce(tensor, *args, **kwargs)

    def call(*args, **kwargs):
        with mock.patch.object(dist, "all_reduce", all_reduce):
            return original(*args, **kwargs)

    # A plain function, or a static method of a class that torch calls through the class.
    with mock.patch.object(owner, name, staticmethod(call) if isinstance(owner, type) else call):
        yield


@contextlib.contextmanager
def own_share_inside(owner, name):
    """Inside the method `owner.name` a rank keeps its share of its own summand, unsummed."""
    from megatron.core.tensor_parallel import layers, mappings

    original = getattr(owner, name)

    def scatter(tensor, *_, **__):
        return mappings.scatter_to_sequence_parallel_region(tensor)

    def call(*args, **kwargs):
        with mock.patch.object(layers, "reduce_scatter_to_sequence_parallel_region", scatter):
            return original(*args, **kwargs)

    with mock.patch.object(owner, name, call):
        yield


@contextlib.contextmanager
def no_sum_of_input_gradients():
    """The gradient of a column-parallel layer's input stays this rank's own summand."""
    from megatron.core.tensor_parallel import layers

    def own_share(output, whole, group=None, **_):
        output.copy_(whole.chunk(group.size())[group.rank()])
        return mock.Mock()

    with mock.patch.object(layers, "dist_reduce_scatter_func", own_share):
        yield


@contextlib.contextmanager
def no_sum_of_gradients(buffers):
    """Gradients of the parameters in `buffers` of the wrapper stay this rank's own."""
    from megatron.core.distributed import DistributedDataParallel

    def finish(wrapper, force_all_reduce=False):
        for kept in {"bucket_groups", "expert_parallel_bucket_groups"} - {buffers}:
            for group in getattr(wrapper, kept):
                group.finish_grad_sync(force_all_reduce=force_all_reduce)

    with mock.patch.object(DistributedDataParallel, "finish_grad_sync", finish):
        yield


def without(reduction):
    """A context in which ranks leave out one reduction."""
    from megatron.core.distributed import finalize_model_grads
    from megatron.core.tensor_parallel import cross_entropy, layers
    from megatron.core.transformer.moe import router

    from megatron_synth.training import optimizer as ours

    finalize = sys.modules[finalize_model_grads.__module__]
    ways = {
        "row-parallel output": lambda: own_share_inside(layers.RowParallelLinear, "forward"),
        "embedding output": lambda: own_share_inside(layers.VocabParallelEmbedding, "forward"),
        "column-parallel input gradient": no_sum_of_input_gradients,
        "cross-entropy": lambda: no_all_reduce_inside(
            cross_entropy._VocabParallelCrossEntropy, "forward"
        ),
        "norm gradients": lambda: mock.patch.object(
            finalize, "_allreduce_non_tensor_model_parallel_grads", nothing
        ),
        "tied embedding gradients": lambda: mock.patch.object(
            finalize, "_allreduce_word_embedding_grads", nothing
        ),
        "gradients": lambda: no_sum_of_gradients("bucket_groups"),
        "expert gradients": lambda: no_sum_of_gradients("expert_parallel_bucket_groups"),
        "token count": lambda: no_all_reduce_inside(
            ours, "finalize_model_grads", lambda tensor: not tensor.is_floating_point()
        ),
        "gradient norm": lambda: no_all_reduce_inside(cpu_shim, "_gradient_norm"),
        "router counts": lambda: no_all_reduce_inside(
            router, "get_tokens_per_expert_and_token_count"
        ),
    }
    return ways[reduction]() if reduction else contextlib.nullcontext()


class Recorded(Windows):
    """Windows that write down in which order they were asked for."""

    def __init__(self, *args):
        super().__init__(*args)
        self.asked = []

    def __getitem__(self, index):
        self.asked.append(index)
        return super().__getitem__(index)


def resave(folder, config, model_config):
    """Load the newest checkpoint in this layout and write it to `folder`/again: no step taken."""
    model = build_model(
        model_config,
        config.parallel,
        sequence_length=config.sequence_length,
        dtype=resolve_dtype(config),
    )
    wrapped = wrap_for_training(model, distributed_optimizer=config.optimizer.distributed)
    optimizer = make_optimizer(wrapped, config.optimizer, config.schedule.peak)
    latest = latest_checkpoint(folder / "checkpoints")
    load_checkpoint(latest, model, optimizer)
    save_checkpoint(folder / "again", model, optimizer, read_state(latest), keep=Retention(1))


def main(out, runs):
    for run in runs:
        config, model = TrainConfig(**run["train"]), ModelConfig(**run["model"])
        windows = Recorded(1000, config.sequence_length, model.vocab_size)
        initialize(config.parallel, seed=config.seed, threads=config.cpu_threads)
        folder = out / run["name"]
        if run.get("resave"):
            resave(folder, config, model)
        in_pieces = context_parallel() if config.context_parallel > 1 else contextlib.nullcontext()
        with without(run.get("without")), in_pieces:
            train(config, model, windows, folder, Progress(), data_hash="tiny")
        (folder / f"windows_{dist.get_rank()}.json").write_text(json.dumps(windows.asked))
        dist.barrier()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
