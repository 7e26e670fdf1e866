import builtins
import logging
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_kinds import (
    BYTE_FALLBACK,
    TRAINING,
    hugging_face_kinds,
    save_hugging_face,
    save_sentence_piece,
    save_tiktoken,
    texts_with,
)
from tokenizers import AddedToken, normalizers
from tokenizers import Tokenizer as Library

from megatron_synth.config import DataError, RunError
from megatron_synth.tokens import Tokenizer, fast, open_fast, prove_fast
from megatron_synth.tokens.young import holds_young

pytest.importorskip("gigatoken")

PROVEN = (
    "separators",
    "reserved",
    "added",
    "sentencepiece",
    "cl100k_base",
    "r50k_base",
    "qwen2",
    "o200k_base",
)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    root = tmp_path_factory.mktemp("fast")
    paths = hugging_face_kinds(root)
    paths["sentencepiece"] = save_sentence_piece(root / "bpe.model", **BYTE_FALLBACK)
    for pattern in ("cl100k_base", "r50k_base", "o200k_base", "qwen2"):
        paths[pattern] = save_tiktoken(root / f"mine_{pattern}.tiktoken", pattern)
    loaded = {kind: Tokenizer.load(path) for kind, path in paths.items()}
    return {kind: (tokenizer, open_fast(tokenizer)) for kind, tokenizer in loaded.items()}


@pytest.mark.parametrize("kind", PROVEN)
def test_equal_ids_are_proven(kinds, kind):
    tokenizer, encoder = kinds[kind]
    assert prove_fast(encoder, tokenizer, TRAINING) is None


@pytest.mark.parametrize("kind", PROVEN)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_what_is_proven_holds_for_any_text(kinds, kind, data):
    tokenizer, encoder = kinds[kind]
    text = data.draw(texts_with(tokenizer.special_spellings))
    ids = encoder.encode(text)
    assert (ids.dtype, ids.ndim) == (np.uint32, 1)
    assert ids.tolist() == tokenizer.encode_batch([text], keep_special=True)[0]
    if tokenizer.find_special(text) is None:
        assert ids.tolist() == tokenizer.encode(text)


def _planes(texts_of):
    for start in (
        *range(0, 0x20000, 256),
        0x32300,
        0x33400,
        *range(0xE0000, 0xE0200, 256),
        0xF0000,
        0x10FF00,
    ):
        block = [chr(p) for p in range(start, start + 256) if p and not 0xD800 <= p < 0xE000]
        yield [texts_of(character) for character in block]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["separators", "o200k_base"])
def test_every_code_point_among_letters_digits_and_blanks(kinds, kind):
    tokenizer, encoder = kinds[kind]
    for texts in _planes(lambda c: f"the{c}the 12{c}345 {c}'s{c} \n{c}  {c}\n{c}\n\n the!{c}!"):
        wanted = tokenizer.encode_batch(texts)
        assert [encoder.encode(text).tolist() for text in texts] == wanted


def test_young_code_points_are_left_to_the_reference(kinds):
    tokenizer, encoder = kinds["separators"]
    for text in ("12\U00010940345", "the\u0c5cthe", "\ua7ce's", "\U000323b0"):
        assert holds_young(text, text.encode())
        assert encoder.encode(text).tolist() == tokenizer.encode(text)
    for text in (
        "",
        "plain",
        "naïve – “quoted” €5",
        "漢字かな",
        "👩\u200d👧 🧑🏿",
        "हिन्दी שלום",
        "\U000f0000",
    ):
        assert not holds_young(text, text.encode())


def test_a_tokenizer_with_single_word_specials_is_refused(kinds):
    tokenizer, encoder = kinds["flags"]
    reason = prove_fast(encoder, tokenizer, [])
    assert reason.startswith("special token in 'aWORDb'")


class _Wrong:
    """Right but for one text."""

    def __init__(self, encoder, wrong):
        self._encoder = encoder
        self._wrong = wrong

    def encode(self, text):
        ids = self._encoder.encode(text)
        return ids[:-1] if self._wrong(text) else ids


def test_a_difference_is_named(kinds):
    tokenizer, encoder = kinds["separators"]
    reason = prove_fast(_Wrong(encoder, lambda t: t == "one"), tokenizer, ["two", "one"])
    assert reason.startswith("sample 1 'one'")
    assert "\n" not in reason
    reason = prove_fast(_Wrong(encoder, lambda t: "漢<|separator|>" in t), tokenizer, [])
    assert reason.startswith("special token in 'é<|separator|>漢") or "漢" in reason
    reason = prove_fast(_Wrong(encoder, lambda t: "\u200d" in t), tokenizer, [])
    assert reason.startswith("hard text")


def test_samples_are_limited(kinds):
    tokenizer, encoder = kinds["separators"]
    far = ["a " * 250_000, "late"]
    assert prove_fast(_Wrong(encoder, lambda t: t == "late"), tokenizer, far) is None


def test_a_sentencepiece_normalisation_that_differs_is_refused(tmp_path):
    tokenizer = Tokenizer.load(save_sentence_piece(tmp_path / "nfkc.model", byte_fallback=True))
    encoder = open_fast(tokenizer)
    assert "instead of" in prove_fast(encoder, tokenizer, [])


def test_unsupported_tokenizers_are_left_to_their_library(tmp_path, caplog):
    other = save_tiktoken(tmp_path / "own.tiktoken", r"\s*\S+|\s+")
    unigram = save_sentence_piece(tmp_path / "unigram.model", "unigram")
    with caplog.at_level(logging.INFO):
        assert open_fast(Tokenizer.load(other)) is None
        assert open_fast(Tokenizer.load(unigram)) is None
    assert "does not know its split expression" in caplog.text
    assert "only BPE sentencepiece models" in caplog.text


def test_a_rank_file_on_which_gigatoken_panics_is_left_to_tiktoken(tmp_path, caplog):
    tokenizer = Tokenizer.load(save_tiktoken(tmp_path / "odd.tiktoken", unreachable=True))
    with caplog.at_level(logging.INFO):
        encoder = open_fast(tokenizer)
    assert encoder is None or prove_fast(encoder, tokenizer, ["unreachable"])
    assert "gigatoken refuses it" in caplog.text or encoder is not None
    assert tokenizer.decode(tokenizer.encode("unreachable")) == "unreachable"


class _Ending:
    def __init__(self, error):
        self._error = error

    def encode(self, text):
        raise self._error


def test_a_failure_of_gigatoken_is_a_run_error_and_a_stop_is_a_stop():
    panic = type("PanicException", (BaseException,), {})
    with pytest.raises(RunError, match="gigatoken failed on the text 'abc': deep inside"):
        fast.FastEncoder(lambda: _Ending(panic("deep\ninside")), list).encode("abc")
    with pytest.raises(KeyboardInterrupt):
        fast.FastEncoder(lambda: _Ending(KeyboardInterrupt()), list).encode("abc")


def test_specials_that_are_looked_for_in_normalised_text_are_left_to_the_library(tmp_path, caplog):
    shouted = AddedToken("<|end|>", special=True, normalized=True)
    folder = save_hugging_face(tmp_path, [shouted], eos="<|end|>")
    model = Library.from_file(str(folder / "tokenizer.json"))
    model.normalizer = normalizers.Lowercase()
    model.save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.eos_id not in tokenizer.encode("a<|END|>b")
    with caplog.at_level(logging.INFO):
        assert open_fast(tokenizer) is None
    assert "other texts than their spellings" in caplog.text


def test_without_the_package_there_is_no_fast_encoder(kinds, monkeypatch, caplog):
    real = builtins.__import__

    def absent(name, *rest, **more):
        if name.startswith("gigatoken"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    with caplog.at_level(logging.INFO):
        assert open_fast(kinds["separators"][0]) is None
    assert "gigatoken is not installed" in caplog.text


def test_a_lone_surrogate_is_a_data_error(kinds):
    with pytest.raises(DataError, match="lone surrogate"):
        kinds["separators"][1].encode("a\ud800")


def test_the_cache_is_begun_anew_when_memory_has_grown(kinds, monkeypatch):
    tokenizer, _ = kinds["separators"]
    memory = iter([0, 50, 101, 101, 150, 202, 202])
    monkeypatch.setattr(fast, "_anonymous_bytes", lambda: next(memory))
    monkeypatch.setattr(fast, "_CHECK_EVERY", 4)
    begun = []
    monkeypatch.setattr(fast.FastEncoder, "_begin", _counted(fast.FastEncoder._begin, begun))
    encoder = open_fast(tokenizer, cache_bytes=100)
    wanted = tokenizer.encode("word")
    assert all(encoder.encode("word").tolist() == wanted for _ in range(4))
    assert len(begun) == 3


def _counted(method, calls):
    def counting(self):
        calls.append(1)
        method(self)

    return counting


@pytest.mark.slow
def test_memory_is_bounded_over_many_distinct_words(tmp_path):
    script = """
import sys, numpy as np
from megatron_synth.tokens import Tokenizer, open_fast
from megatron_synth.tokens.fast import _anonymous_bytes
encoder = open_fast(Tokenizer.load(sys.argv[1]), cache_bytes=64 << 20)
rng, start, most = np.random.default_rng(0), _anonymous_bytes(), 0
for _ in range(400):
    letters = rng.integers(97, 123, size=(14_000, 7), dtype=np.uint8)
    letters[:, 6] = 32
    encoder.encode(letters.tobytes().decode())
    most = max(most, _anonymous_bytes() - start)
print(most >> 20)
"""
    folder = save_hugging_face(tmp_path, [AddedToken("<|endoftext|>", special=True)])
    ran = subprocess.run(
        [sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True
    )
    assert int(ran.stdout) < 160  # without a bound 40 MB of such words take 480 MB


def test_the_fast_path_imports_nothing_heavy(tmp_path):
    folder = save_hugging_face(tmp_path, [AddedToken("<|endoftext|>", special=True)])
    script = f"""
import sys
from megatron_synth.tokens import Tokenizer, open_fast, prove_fast
before = {{"gigatoken", "sentencepiece", "tiktoken"}} & set(sys.modules)
tokenizer = Tokenizer.load({str(folder)!r})
assert prove_fast(open_fast(tokenizer), tokenizer, ["a text"]) is None
heavy = {{"awkward", "torch", "transformers", "sentencepiece", "tiktoken"}}
print(before, heavy & set(sys.modules))
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set() set()"
