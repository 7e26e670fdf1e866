import hashlib
import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_synth.config import ConfigError, DataError
from megatron_synth.tokens import Tokenizer, train_tokenizer

TEXTS = [f"word{i} and the thing number {i * i} of {i % 7}" for i in range(300)]

SCRIPT = """
import sys
from pathlib import Path
from megatron_synth.tokens import train_tokenizer
texts = [f"word{i} and the thing number {i * i} of {i % 7}" for i in range(300)]
train_tokenizer(texts, 500, Path(sys.argv[1]))
"""


def _digest(folder):
    files = sorted(p for p in folder.iterdir() if p.is_file())
    return [(p.name, hashlib.sha256(p.read_bytes()).hexdigest()) for p in files]


def test_training_gives_the_same_files_in_every_process(tmp_path):
    train_tokenizer(TEXTS, 500, tmp_path / "here")
    for seed in ("1", "2"):
        out = tmp_path / seed
        environment = {**os.environ, "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": seed}
        subprocess.run([sys.executable, "-c", SCRIPT, str(out)], check=True, env=environment)
        assert _digest(out) == _digest(tmp_path / "here")


def test_the_trained_tokenizer_is_the_saved_one(tmp_path):
    trained = train_tokenizer(iter(TEXTS), 500, tmp_path)
    assert trained.vocab_size == 500
    assert trained.fingerprint == Tokenizer.load(tmp_path).fingerprint


def test_other_texts_give_another_fingerprint(tmp_path):
    one = train_tokenizer(TEXTS, 300, tmp_path / "1")
    two = train_tokenizer([t.upper() for t in TEXTS], 300, tmp_path / "2")
    assert one.fingerprint != two.fingerprint


@settings(max_examples=20, deadline=None)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1))
def test_any_corpus_trains_and_every_byte_is_a_token(tmp_path_factory, texts):
    tokenizer = train_tokenizer(texts, 300, tmp_path_factory.mktemp("t"))
    assert 258 <= tokenizer.vocab_size <= 300
    rare = "".join(map(chr, range(256))) + "漢🦊\u0300"
    assert tokenizer.decode(tokenizer.encode(rare)) == rare


def test_nothing_is_added_by_the_tokenizer_itself(tmp_path):
    train_tokenizer(TEXTS, 300, tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    assert saved["post_processor"] is None
    assert saved["normalizer"] is None


def test_no_text_is_a_data_error_and_leaves_no_tokenizer(tmp_path):
    for texts in ([], ["", ""]):
        with pytest.raises(DataError, match="no text"):
            train_tokenizer(texts, 300, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_vocabulary_without_room_for_the_bytes_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="258"):
        train_tokenizer(TEXTS, 257, tmp_path)
