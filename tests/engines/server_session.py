"""Run by test_server_engine.py in a process of its own: a driver with a vLLM server.

`server_session.py FOLDER ask`: what the server answers, and what becomes of its death.
`server_session.py FOLDER hold`: starts the server, asks without end, and waits to be killed.
"""

import json
import os
import signal
import sys
from dataclasses import asdict, replace
from pathlib import Path

import psutil
from chat_models import CHATML, save_chat_tokenizer
from tiny_llama import VOCABULARY, save_tiny_llama

from megatron_synth.config import MegatronSynthError
from megatron_synth.engines import Request, Sampling, ServerConfig, complete, make_engine
from megatron_synth.tokens import Tokenizer

BANNED = [3, *range(5, VOCABULARY, 2)]
CONFIG = ServerConfig(concurrency=8)
SPREAD = ServerConfig(concurrency=8, speculation="ngram", tensor_parallel=2)
REPEATING = [list(range(2, 40, 2)) * 4, [8, 10, 12] * 20]


def ask(key: str, seed: int = 0, prompt: object = None, **changes) -> Request:
    sampling = Sampling(**{"max_tokens": 20, "top_p": 0.9, "seed": seed, **changes})
    return Request(key, [2, 4, 6] if prompt is None else prompt, sampling)


def greedy() -> list[Request]:
    """Answers that repeat their prompts' tokens, as the likeliest ones of a random model do."""
    settings = {"temperature": 0.0, "top_p": 1.0, "max_tokens": 80}
    return [ask(f"greedy{n}", 0, prompt, **settings) for n, prompt in enumerate(REPEATING)]


def only_the_likeliest(request: Request, key: str) -> Request:
    """Sampled, from so small a share of the probability that it says what a greedy one says."""
    sampling = replace(request.sampling, temperature=1.0, top_p=1e-6)
    return replace(request, key=key, sampling=sampling)


def open_engine(folder: Path, config: ServerConfig = CONFIG):
    model = folder / "model"
    if not model.exists():
        save_chat_tokenizer(save_tiny_llama(model), CHATML)
    return make_engine(config, model, Tokenizer.load(model), BANNED)


def kill_server() -> None:
    """`kill -9` of the server's own process, not of its supervisor."""
    (supervisor,) = psutil.Process().children()
    (server,) = supervisor.children()
    os.kill(server.pid, signal.SIGKILL)


def main(folder: Path) -> None:
    results: dict[str, object] = {}
    engine = open_engine(folder)
    asks = [ask(f"a{n}", n, max_tokens=10 + n) for n in range(20)]
    asks += [ask("same0", 7), ask("same1", 7), ask("other", 8)]
    asks += [
        ask("stop", 1, stop_ids=tuple(range(0, VOCABULARY, 4)), max_tokens=200),
        ask("text", 1, "a<|im_end|>b", max_tokens=5),
        ask("fills", 1, [2] * 250, max_tokens=20),
        ask("too_long", 1, [2] * 300),
        ask("bad_id", 1, [VOCABULARY]),
    ]
    results["answers"] = [asdict(c) for c in complete(engine, asks)]
    results["greedy"] = {c.key: asdict(c) for c in complete(engine, greedy())}

    # The server dies under 40 requests, once: it is started anew and all are answered.
    found = []
    for answer in complete(engine, (ask(f"b{n}", n, max_tokens=30) for n in range(40))):
        if len(found) == 10:
            kill_server()
        found.append(asdict(answer))
    results["after_a_death"] = found

    # It dies again, and may not be started anew.
    found = []
    try:
        for answer in complete(engine, (ask(f"c{n}", n, max_tokens=30) for n in range(40))):
            if len(found) == 10:
                kill_server()
            found.append(answer.key)
    except MegatronSynthError as error:
        results["second_death"] = [type(error).__name__, str(error), len(found)]
    engine.close()

    # Another one: guesses in the place of our logits processor, and two processes.
    engine = open_engine(folder, SPREAD)
    family = [" ".join(p.cmdline()) for p in psutil.Process().children(recursive=True)]
    results["family"] = family
    sampled = [ask(f"a{n}", n, REPEATING[0]) for n in range(12)]
    likeliest = [only_the_likeliest(request, f"likeliest{n}") for n, request in enumerate(greedy())]
    found = complete(engine, [*greedy(), *sampled, *likeliest])
    results["guessed"] = {c.key: asdict(c) for c in found}
    engine.close()
    results["left"] = [p.name() for p in psutil.Process().children(recursive=True)]
    (folder / "results.json").write_text(json.dumps(results))


def hold(folder: Path) -> None:
    engine = open_engine(folder)
    for n, _ in enumerate(complete(engine, (ask(f"{n:x}", n) for n in range(1_000_000)))):
        if n == 8:
            family = [p.pid for p in psutil.Process().children(recursive=True)]
            (folder / "family.json.part").write_text(json.dumps(family))
            (folder / "family.json.part").rename(folder / "family.json")


if __name__ == "__main__":
    {"ask": main, "hold": hold}[sys.argv[2]](Path(sys.argv[1]))
