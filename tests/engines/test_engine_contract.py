"""`complete`, model folders and vLLM's errors in our words: what needs no vLLM."""

import json
from itertools import count
from pathlib import Path

import pytest

from megatron_synth.config import ConfigError, DataError, RunError
from megatron_synth.engines import (
    Completion,
    Request,
    Sampling,
    VllmConfig,
    VllmEngine,
    complete,
    fingerprint_model,
    read_model_folder,
)
from megatron_synth.engines.vllm_errors import explain
from megatron_synth.runs import hash_cache, hash_file

CONFIG = {
    "max_position_embeddings": 64,
    "vocab_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 32,
    "torch_dtype": "float32",
}


class Echo:
    """Answers one request a step, oldest last."""

    concurrency = 3

    def __init__(self) -> None:
        self.running: list[Request] = []
        self.largest = 0
        self.cancelled = False

    def submit(self, request: Request) -> None:
        self.running.append(request)
        self.largest = max(self.largest, len(self.running))

    def step(self) -> list[Completion]:
        return [Completion(self.running.pop().key)]

    def cancel(self) -> None:
        self.cancelled = True
        self.running.clear()

    def close(self) -> None:
        pass


def requests(numbers):
    return (Request(f"{n:x}", [n], Sampling()) for n in numbers)


def write_model(folder: Path, **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_every_request_is_answered_once_and_the_engine_is_kept_full():
    engine = Echo()
    keys = [c.key for c in complete(engine, requests(range(20)))]
    assert sorted(keys) == sorted(f"{n:x}" for n in range(20))
    assert engine.largest == engine.concurrency
    assert not engine.cancelled


def test_requests_are_taken_only_as_fast_as_they_are_answered_and_closing_cancels():
    engine = Echo()
    answers = complete(engine, requests(count()))
    for _ in range(5):
        next(answers)
    answers.close()
    assert engine.cancelled


def test_a_model_folder_says_what_it_holds(tmp_path):
    model = read_model_folder(write_model(tmp_path / "m"))
    assert (model.context, model.vocab_size, model.dtype, model.head_size) == (
        64,
        100,
        "float32",
        8,
    )
    assert model.cache_bytes_per_token == 2 * 2 * 2 * 8 * 4


def test_a_missing_or_damaged_model_folder_is_a_clear_error(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        read_model_folder(tmp_path / "absent")
    with pytest.raises(DataError, match="no such folder"):
        VllmEngine(VllmConfig(), tmp_path / "absent")
    (tmp_path / "m").mkdir()
    with pytest.raises(DataError, match=r"config\.json is missing"):
        read_model_folder(tmp_path / "m")
    write_model(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"no .*weights"):
        read_model_folder(tmp_path / "m")
    write_model(tmp_path / "m", vocab_size=None)
    with pytest.raises(DataError, match="not a usable model config"):
        read_model_folder(tmp_path / "m")


def test_the_fingerprint_depends_on_weights_config_and_what_is_added(tmp_path):
    folder = write_model(tmp_path / "m")
    seen = {fingerprint_model(folder), fingerprint_model(folder, banned=[1])}
    (folder / "model.safetensors").write_bytes(b"other weights")
    seen.add(fingerprint_model(folder))
    write_model(folder, vocab_size=101)
    seen.add(fingerprint_model(folder))
    assert len(seen) == 4


def test_weights_that_did_not_change_are_read_once_for_the_fingerprint(tmp_path, monkeypatch):
    monkeypatch.setattr(hash_cache, "_SETTLED_NS", -(1 << 62))  # as if written long ago
    folder = write_model(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(bytes(1 << 20))
    first = fingerprint_model(folder)
    read = []
    monkeypatch.setattr(hash_cache, "hash_file", lambda path: read.append(path) or hash_file(path))
    assert fingerprint_model(folder) == first
    assert [path.name for path in read] == ["config.json"]
    (folder / "model.safetensors").write_bytes(bytes((1 << 20) + 1))
    assert fingerprint_model(folder) != first


@pytest.mark.parametrize(
    ("raised", "kind", "words"),
    [
        (MemoryError(), RunError, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), RunError, "out of memory"),
        (ValueError("No available memory for the cache blocks."), RunError, "out of memory"),
        (OSError(98, "Address already in use"), RunError, "taken by another process"),
        (ValueError("Head size 8 is not supported by CPU_ATTN."), ConfigError, "head size"),
        (KeyError("whatever"), RunError, "vLLM failed while starting: KeyError"),
    ],
)
def test_errors_of_vllm_are_explained(raised, kind, words):
    found = explain(raised, Path("model"), "starting")
    assert isinstance(found, kind)
    assert words in str(found)


def test_the_cause_of_an_error_is_found_through_its_chain():
    try:
        try:
            raise RuntimeError("CUDA out of memory")
        except RuntimeError as inner:
            raise ValueError("engine core initialization failed") from inner
    except ValueError as error:
        assert "ran out of memory" in str(explain(error, Path("m"), "starting"))
