"""Run by test_vllm_engine.py in a process of its own: vLLM changes torch for the whole process."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from tiny_llama import CONTEXT, VOCABULARY, save_tiny_llama

from megatron_synth.config import MegatronSynthError
from megatron_synth.engines import Request, Sampling, VllmConfig, VllmEngine, complete

BANNED = [3, *range(5, VOCABULARY, 2)]


def ask(key: str, *, seed: int = 0, prompt: list[int] | None = None, **changes) -> Request:
    sampling = Sampling(**{"max_tokens": 40, "top_p": 0.9, "seed": seed, **changes})
    return Request(key, prompt or [2, 4, 6], sampling)


def main(folder: Path) -> None:
    results: dict[str, object] = {}
    try:
        odd = save_tiny_llama(folder / "odd", head_size=16)
        VllmEngine(VllmConfig(), odd)
    except MegatronSynthError as error:
        results["head_size"] = [type(error).__name__, str(error)]
    try:
        VllmEngine(VllmConfig(kv_cache_gb=0.00001), save_tiny_llama(folder / "model"))
    except MegatronSynthError as error:
        results["memory"] = [type(error).__name__, str(error)]

    config = VllmConfig(concurrency=8)
    engine = VllmEngine(config, folder / "model", banned_ids=BANNED)
    requests = [ask(f"a{n}", seed=n, max_tokens=10 + n) for n in range(40)]
    requests += [ask("same0", seed=7), ask("same1", seed=7), ask("other", seed=8)]
    long = [2] * (CONTEXT - 20)
    requests += [ask(f"long{n}", seed=n, prompt=long, max_tokens=20) for n in range(6)]
    requests += [
        ask("stop", seed=1, max_tokens=200, stop_ids=tuple(range(0, VOCABULARY, 4))),
        ask("too_long", prompt=[2] * (CONTEXT + 1)),
        ask("bad_id", prompt=[VOCABULARY]),
        Request("empty", [], Sampling()),
    ]
    order: list[str] = []
    answers = {}
    for completion in complete(engine, requests):
        order.append(completion.key)
        answers[completion.key] = asdict(completion)
    results["order"] = order
    results["answers"] = answers

    endless = complete(engine, (ask(f"b{n}", seed=n) for n in range(1000)))
    first = next(endless).key
    endless.close()
    after = [c.key for c in complete(engine, [ask("after")])]
    results["cancelled"] = [first, after]
    engine.close()
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
