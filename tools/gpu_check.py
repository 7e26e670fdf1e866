"""Check this machine's GPU against reference arithmetic, and measure training on it.

    python tools/gpu_check.py           every part, one table each; on a CPU: tiny models, float32
    python tools/gpu_check.py --json    one JSON object, logs to stderr

Parts: attention (what torch picks against an explicit softmax in float64, forward and backward),
parity (a dense and an MoE model in bf16 against float32: losses and gradient norms of the same
steps), speed (tokens/s, TFLOP/s, MFU and memory of a dense and an MoE preset over micro-batch
sizes, each in a process of its own, so that one that does not fit ends nothing).
"""

import argparse
import importlib.util
import json
import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from megatron_synth.models import ModelConfig, count_parameters, training_flops
from megatron_synth.runs import log_to

Row = dict[str, Any]

_SIZES = {"num_layers": 4, "hidden_size": 256, "num_attention_heads": 4, "ffn_hidden_size": 512}
_PARITY = {
    "dense": ModelConfig(**_SIZES, vocab_size=4096, qk_norm=True),
    "moe": ModelConfig(**_SIZES, vocab_size=4096, qk_norm=True, moe={"num_experts": 8, "top_k": 2}),
}
_TINY = {"dense": ModelConfig(preset="quickstart-1m"), "moe": ModelConfig(preset="quickstart-moe")}
# OLMoE's shape with 8 layers and 16 experts: what fits one GPU with its optimizer's state.
_SPEED = {
    "dense": ModelConfig(preset="olmo2-400m"),
    "moe": ModelConfig(preset="olmoe-7b-a1b", num_layers=8, moe={"num_experts": 16, "top_k": 4}),
}


def main() -> None:
    """Run the parts and print them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--micro-batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--sequence-length", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=10, help="timed, after 3 that are not")
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # one measurement, in a child
    options = parser.parse_args()
    log_to()
    if options.one:
        print(json.dumps(measure(**json.loads(options.one))))
        return
    found = {"machine": machine(), "attention": attention(), "parity": parity()}
    found["speed"] = speed(options)
    print(json.dumps(found) if options.json else shown(found))


def machine() -> Row:
    """What is here, and which fused parts are in use."""
    from megatron_synth.models.specs import uses_transformer_engine

    gpu = torch.cuda.is_available()
    apex = importlib.util.find_spec("apex") is not None
    return {
        "device": torch.cuda.get_device_name() if gpu else "CPU",
        "torch": torch.__version__,
        "transformer_engine": uses_transformer_engine(),
        "apex": apex,
        "attention": "Transformer Engine"
        if uses_transformer_engine()
        else "scaled_dot_product_attention",
    }


def attention() -> list[Row]:
    """Largest relative error of the core attention, forward and backward, against float64."""
    on = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if on.type == "cuda" else torch.float32
    rows = []
    for length, heads, groups in ((512, 8, 8), (2048, 8, 2)):
        torch.manual_seed(0)
        shapes = (heads, groups, groups)
        inputs = [torch.randn(1, n, length, 64, dtype=torch.float64) for n in shapes]
        exact = _run_attention(_softmax_attention, [x.clone() for x in inputs])
        here = _run_attention(_core_attention, [x.to(on, dtype) for x in inputs])
        names = ("output", "query gradient", "key gradient", "value gradient")
        errors = {
            name: float((a.double().cpu() - b).norm() / b.norm())
            for name, a, b in zip(names, here, exact, strict=True)
        }
        rows.append({"length": length, "heads": heads, "groups": groups, **errors})
    return rows


def _run_attention(attend: Any, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    for x in inputs:
        x.requires_grad_()
    output = attend(*inputs)
    (
        output * torch.linspace(-1, 1, output.shape[-1], dtype=output.dtype, device=output.device)
    ).sum().backward()
    return [output.detach(), *(x.grad for x in inputs if x.grad is not None)]


def _core_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=query.shape[1] != key.shape[1]
    )


def _softmax_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    times = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(times, dim=1) for x in (key, value))
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    weights: torch.Tensor = scores.masked_fill(later, float("-inf")).softmax(-1)
    return weights @ value


def parity() -> list[Row]:
    """Ten steps in bf16 (float32 on a CPU) against float32: relative differences.

    Of the first step, where both have the same weights, the loss and the gradient norm; of all
    ten the loss alone: later norms compare two different models.
    """
    rows = []
    for name, model in _PARITY.items():
        runs = [
            _child(model=model, micro_batch=2, sequence_length=256, steps=10, precision=precision)
            for precision in ("auto", "fp32")
        ]
        here, exact = runs
        rows.append(
            {
                "model": name,
                "first loss": _difference(here["losses"][:1], exact["losses"][:1]),
                "first gradient norm": _difference(here["norms"][:1], exact["norms"][:1]),
                "loss": _difference(here["losses"], exact["losses"]),
            }
        )
    return rows


def _difference(ours: list[float], theirs: list[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))


def speed(options: argparse.Namespace) -> list[Row]:
    """Tokens a second over micro-batch sizes; a size that does not fit ends its model's row."""
    gpu = torch.cuda.is_available()
    rows = []
    for name, model in (_SPEED if gpu else _TINY).items():
        for micro_batch in options.micro_batches if gpu else options.micro_batches[:2]:
            length = options.sequence_length if gpu else 256
            row = _child(
                model=model,
                micro_batch=micro_batch,
                sequence_length=length,
                steps=options.steps,
                precision="auto",
                recompute=options.recompute,
            )
            rows.append({"model": name, "micro_batch": micro_batch, "length": length, **row})
            if "error" in row:
                break
    return rows


def _child(**wanted: Any) -> Row:
    wanted["model"] = wanted["model"].model_dump(mode="json")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(__file__)), "--one", json.dumps(wanted)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"error": lines[-1] if lines else f"status {done.returncode}"}
    answer: Row = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def measure(
    model: dict[str, Any],
    micro_batch: int,
    sequence_length: int,
    steps: int,
    precision: str,
    recompute: bool = False,
) -> Row:
    """Train on random tokens; speed is of the steps after the third."""
    from megatron_synth.models import build_model
    from megatron_synth.runtime import device, initialize
    from megatron_synth.training import TrainConfig
    from megatron_synth.training.forward import run_batch
    from megatron_synth.training.hardware import memory_used, peak_here
    from megatron_synth.training.optimizer import make_optimizer, set_step, wrap_for_training
    from megatron_synth.training.resume import resolve_dtype

    logging.getLogger("megatron").setLevel(logging.ERROR)
    config = ModelConfig.model_validate(model)
    training = TrainConfig(
        steps=steps + 3,
        micro_batch_size=micro_batch,
        global_batch_size=micro_batch,
        sequence_length=sequence_length,
        precision=precision,
    )
    initialize(seed=0, threads=1)
    dtype = resolve_dtype(training)
    built = build_model(config, sequence_length=sequence_length, seed=0, dtype=dtype)
    wrapped = wrap_for_training(built, recompute=recompute)
    optimizer = make_optimizer(wrapped, training.optimizer, training.schedule.peak)
    wrapped.train()
    generator = torch.Generator().manual_seed(0)
    losses, norms, seconds = [], [], []
    for step in range(1, training.steps + 1):
        batch = _batch(config.vocab_size, micro_batch, sequence_length, generator)
        began = time.perf_counter()
        set_step(optimizer, training.optimizer, training.schedule, step, training.steps)
        wrapped.zero_grad_buffer()
        optimizer.zero_grad()
        loss = run_batch(
            wrapped,
            [batch],
            global_batch_size=micro_batch,
            sequence_length=sequence_length,
            train=True,
        )
        _, norm, _ = optimizer.step()
        if device().type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        losses.append(loss.mean)
        norms.append(float(norm))
    tokens = micro_batch * sequence_length
    a_step = sorted(seconds[3:])[len(seconds[3:]) // 2]
    flops, peak = training_flops(config, tokens, sequence_length) / a_step, peak_here(dtype)
    return {
        "losses": losses,
        "norms": norms,
        "parameters": count_parameters(config).total,
        "tokens_per_second": tokens / a_step,
        "tflops": flops / 1e12,
        "mfu": None if peak is None else flops / peak,
        "memory_bytes": memory_used(),
    }


def _batch(
    vocabulary: int, size: int, length: int, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    text = torch.randint(0, vocabulary, (size, length + 1), generator=generator)
    return {
        "tokens": text[:, :-1].contiguous(),
        "labels": text[:, 1:].contiguous(),
        "loss_mask": torch.ones(size, length),
        "position_ids": torch.arange(length).repeat(size, 1),
        "place": torch.arange(size),
        "dataset_id": torch.zeros(size, dtype=torch.long),
    }


def shown(found: Row) -> str:
    """The tables."""
    here = found["machine"]
    lines = [
        f"{here['device']}, torch {here['torch']}; attention: {here['attention']}; Transformer "
        f"Engine: {'yes' if here['transformer_engine'] else 'no'}; Apex: "
        f"{'yes' if here['apex'] else 'no'}",
        "",
        "attention against a softmax in float64, relative error",
    ]
    for row in found["attention"]:
        errors = ", ".join(f"{k} {v:.1e}" for k, v in row.items() if isinstance(v, float))
        lines.append(f"  S {row['length']}, {row['heads']}/{row['groups']} heads: {errors}")
    lines += ["", "this machine's precision against float32, relative difference"]
    for row in found["parity"]:
        lines.append(
            f"  {row['model']}: first step's loss {row['first loss']:.1e}, gradient norm "
            f"{row['first gradient norm']:.1e}; loss of ten steps at most {row['loss']:.1e}"
        )
    columns = ("model", "S", "micro", "tokens/s", "TFLOP/s", "MFU", "GB")
    lines += ["", "".join(f"{c:>10}" for c in columns)]
    for row in found["speed"]:
        head = f"{row['model']:>10}{row['length']:>10}{row['micro_batch']:>10}"
        if "error" in row:
            lines.append(f"{head}  {row['error'][:80]}")
            continue
        mfu = "-" if row["mfu"] is None else f"{100 * row['mfu']:.1f} %"
        lines.append(
            f"{head}{row['tokens_per_second']:>10,.0f}{row['tflops']:>10.2f}{mfu:>10}"
            f"{row['memory_bytes'] / 1e9:>10.1f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
