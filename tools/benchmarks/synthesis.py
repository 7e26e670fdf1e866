"""What synthesis costs on top of vLLM, and what speculation gains.

- `engine`: output tokens/s of a `Shard` (request log, documents, filters) with a `VllmEngine`,
  beside bare `LLM.generate` on the same requests, in turn, on one vLLM engine in one process.
- `speculation`: a `VllmEngine` on prompts that hold a text which the model goes on to repeat, with
  n-gram speculation and without, each in a process of its own.

The filters have a script of their own, `synthesis_filters.py`.

Models: a small random Llama, and a llama2.c checkpoint (`--checkpoint`).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from megatron_synth.corpus import Document, read_documents
from megatron_synth.engines import (
    Request,
    RequestLog,
    Sampling,
    VllmConfig,
    VllmEngine,
    complete,
    read_model_folder,
)
from megatron_synth.engines.scannable import make_scannable
from megatron_synth.engines.vllm_settings import engine_arguments, set_environment
from megatron_synth.synthesis.config import FilterConfig, SynthesisConfig
from megatron_synth.synthesis.contract import Item, Writing, request_key
from megatron_synth.synthesis.shard import Shard
from megatron_synth.tokens import Tokenizer, train_tokenizer

_TESTS = Path(__file__).resolve().parents[2] / "tests" / "engines"
_CONTEXT = 512
_PROMPT = 128
_ANSWER = 128
_CONCURRENCY = 64
_WARM_UP = 8


class Continuations:
    """A method that goes on with the first tokens of real documents (see `contract.Method`)."""

    name = "continuations"

    def __init__(self, prompts: list[list[int]], texts: list[str], tokenizer: Tokenizer) -> None:
        self.total: int | None = len(prompts)
        self._prompts = prompts
        self._texts = texts
        self._tokenizer = tokenizer

    def items(self, shard: int, shards: int) -> Iterator[Item]:
        """One item a prompt."""
        for index in range(shard, len(self._prompts), shards):
            yield Item(index, index, str(index), 0, index)

    def request(self, item: Item) -> Request:
        """What is asked, here and of the bare engine."""
        sampling = Sampling(
            temperature=1.0,
            top_p=0.9,
            max_tokens=_ANSWER,
            seed=item.seed,
            stop_ids=(self._tokenizer.eos_id,),
        )
        prompt = self._prompts[item.index]
        key = request_key(
            document=item.source_id,
            method=self.name,
            generation=0,
            prompt=prompt,
            sampling=sampling,
            generator="benchmark",
        )
        return Request(key, prompt, sampling)

    def write(self, item: Item) -> Writing:
        """One request, one document."""
        [completion] = yield [self.request(item)]
        text = completion.text
        tokens = len(self._tokenizer.encode(text))
        return Document(
            id=str(item.index),
            text=text,
            finish_reason=completion.finish_reason,
            token_counts={"text": tokens, "output": completion.output_tokens},
        )

    def source_text(self, item: Item) -> str:
        """The document that was begun with."""
        return self._texts[item.index]

    def count_inputs(self) -> dict[str, int]:
        """All of them fit."""
        return {}


def engine(model: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Our path and the bare one, in turn; tokens/s of each and the ratio of each pair."""
    set_environment()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    texts, tokenizer = _texts(args, read_model_folder(model).vocab_size)
    prompts = [ids[:_PROMPT] for ids in tokenizer.encode_batch(texts)]
    method = Continuations(prompts, texts, tokenizer)
    config = SynthesisConfig(
        method="sbp",
        tokens=1 << 40,  # all items are made
        max_requests=len(prompts),
        allow_short=True,
        min_kept_share=0,
        filters=FilterConfig(min_tokens=1, finished=False),
    )
    settings = VllmConfig(concurrency=_CONCURRENCY)

    from vllm import LLM, LLMEngine, SamplingParams
    from vllm.inputs import tokens_input

    make_scannable()
    started = time.perf_counter()
    llm = LLM(**engine_arguments(settings, read_model_folder(model), []))
    start_seconds = time.perf_counter() - started
    with mock.patch.object(LLMEngine, "from_engine_args", return_value=llm.llm_engine):
        ours = VllmEngine(settings, model, tokenizer=tokenizer)
    requests = [method.request(item) for item in method.items(0, 1)]
    list(complete(ours, requests[:_WARM_UP]))
    pairs = []
    for repeat in range(args.repeat):
        llm.reset_prefix_cache()
        path = args.work / f"requests-{os.getpid()}-{repeat}.log"
        with RequestLog(path, "benchmark") as log:
            began = time.perf_counter()
            state = Shard(config, 0, method, log).run(lambda: ours)
            seconds = time.perf_counter() - began
        path.unlink()
        llm.reset_prefix_cache()
        params = [
            SamplingParams(
                temperature=r.sampling.temperature,
                top_p=r.sampling.top_p,
                max_tokens=r.sampling.max_tokens,
                seed=r.sampling.seed,
                stop_token_ids=list(r.sampling.stop_ids),
                ignore_eos=True,
                detokenize=False,
            )
            for r in requests
        ]
        began = time.perf_counter()
        outputs = llm.generate([tokens_input(p) for p in prompts], params, use_tqdm=False)
        bare_seconds = time.perf_counter() - began
        bare = sum(len(o.outputs[0].token_ids) for o in outputs)
        pairs.append((state.new_output_tokens / seconds, bare / bare_seconds))
    return {
        "start_seconds": round(start_seconds, 1),
        "requests": len(prompts),
        "tokens": bare,
        "ours": [round(a) for a, _ in pairs],
        "bare": [round(b) for _, b in pairs],
        "ratio": round(statistics.median(a / b for a, b in pairs), 3),
    }


def speculation(model: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Tokens/s and steps with `args.setting`, and how much of each answer repeats its prompt."""
    config = VllmConfig(concurrency=args.concurrency, speculation=args.setting)
    vllm = VllmEngine(config, model)
    tell = Sampling(temperature=0.0, max_tokens=150)
    # The model's own stories, one for each first word, are what it can be expected to repeat.
    first = [Request(f"{n:x}", [1, n], tell) for n in range(259, min(512, 259 + args.requests))]
    stories = {c.key: list(c.token_ids) for c in complete(vllm, first)}
    again = [
        Request(r.key, [*r.prompt, *stories[r.key], *r.prompt], tell)  # type: ignore[misc]
        for r in first
    ]
    began = time.perf_counter()
    for request in again:
        vllm.submit(request)
    answers, steps = [], 0
    while len(answers) < len(again):
        answers += vllm.step()
        steps += 1
    seconds = time.perf_counter() - began
    vllm.close()
    copied = [
        sum(a == b for a, b in zip(c.token_ids, stories[c.key], strict=True)) for c in answers
    ]
    tokens = sum(c.output_tokens for c in answers)
    return {
        "tokens": tokens,
        "steps": steps,
        "tokens_per_second": round(tokens / seconds),
        "repeated_share": round(sum(copied) / tokens, 3),
    }


def _texts(args: argparse.Namespace, vocabulary: int) -> tuple[list[str], Tokenizer]:
    """The first long documents of the corpus, and a tokenizer that fits the model."""
    texts = []
    for document in read_documents(args.corpus):
        if len(document.text) > 8 * _PROMPT:
            texts.append(document.text[: 16 * _PROMPT])
        if len(texts) == args.requests:
            break
    return texts, train_tokenizer(texts, vocabulary, args.work / f"tokenizer-{vocabulary}")


def _models(args: argparse.Namespace) -> dict[str, Path]:
    folders = {name: args.work / name for name in ("random", "checkpoint")}
    if not folders["random"].is_dir():
        sys.path.insert(0, str(_TESTS))
        from tiny_llama import save_tiny_llama

        save_tiny_llama(folders["random"], vocab_size=4096, context=_CONTEXT, head_size=64)
    if args.checkpoint is None:
        del folders["checkpoint"]
    elif not folders["checkpoint"].is_dir():
        from llama2c import convert

        convert(args.checkpoint, folders["checkpoint"])
    return folders


def _alone(args: argparse.Namespace, *more: str) -> dict[str, Any]:
    """This script's answer to `more`, in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], *more]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> None:
    """Print one line of JSON a figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for models and logs")
    parser.add_argument("--corpus", type=Path, required=True, help="documents, such as JSONL")
    parser.add_argument("--checkpoint", type=Path, help="of llama2.c, version 0")
    parser.add_argument("--only", choices=["engine", "speculation"])
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--concurrency", type=int, default=_CONCURRENCY)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--setting", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    models = _models(args)
    if args.model:
        found = (speculation if args.setting else engine)(models[args.model], args)
        print(json.dumps(found))
        return
    if args.only in (None, "engine"):
        for name in models:
            print(json.dumps({"engine": name, **_alone(args, "--model", name)}), flush=True)
    if args.only in (None, "speculation") and "checkpoint" in models:
        for setting in ("off", "ngram"):
            alone = _alone(args, "--model", "checkpoint", "--setting", setting)
            print(json.dumps({"speculation": setting, **alone}), flush=True)


if __name__ == "__main__":
    main()
