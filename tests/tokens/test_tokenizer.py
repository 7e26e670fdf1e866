import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, models

from megatron_synth.config import DataError
from megatron_synth.tokens import END_OF_TEXT, SEPARATOR, Tokenizer, train_tokenizer

SPECIALS = [END_OF_TEXT, SEPARATOR]
UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)

TRAINING = [
    "The quick brown fox jumps over the lazy dog, again and again and again.\n" * 3,
    f"A text that quotes {END_OF_TEXT} and {SEPARATOR} many times: " + END_OF_TEXT * 50,
    "def read(path: str) -> bytes:\n    '''Read a file.'''\n    return open(path).read()\n",
] * 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TRAINING, 400, out)
    return out


@pytest.fixture(scope="module")
def tokenizer(folder) -> Tokenizer:
    return Tokenizer.load(folder)


@given(text=UNICODE)
def test_any_text_survives_encoding_and_decoding(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(before=UNICODE, special=st.sampled_from(SPECIALS), after=UNICODE, glue=st.booleans())
def test_spelled_special_token_is_text_in_every_position(tokenizer, before, special, after, glue):
    space = "" if glue else " "
    for text in (
        special,
        before + space + special,
        special + space + after,
        before + space + special + space + after,
        before + special[:5] + special + special[5:] + after,
    ):
        ids = tokenizer.encode(text)
        assert not tokenizer.special_ids.intersection(ids)
        assert tokenizer.decode(ids) == text


@given(texts=st.lists(UNICODE | st.sampled_from(SPECIALS), max_size=8))
def test_a_batch_is_encoded_as_its_texts_alone(tokenizer, texts):
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


def test_no_merge_spells_a_special_token(folder):
    merges = json.loads((folder / "tokenizer.json").read_text())["model"]["merges"]
    built = {"".join(pair) for pair in merges}
    assert "endoftext" in built  # the training text is full of it
    assert not any(special in token for special in SPECIALS for token in built)


def test_control_ids_and_vocabulary(tokenizer):
    assert (tokenizer.eos_id, tokenizer.separator_id, tokenizer.bos_id) == (0, 1, None)
    assert tokenizer.special_ids == {0, 1}
    assert tokenizer.vocab_size == max(tokenizer._model.get_vocab().values()) + 1


def test_decode_leaves_control_tokens_out_unless_asked(tokenizer):
    ids = [*tokenizer.encode("a"), tokenizer.eos_id]
    assert tokenizer.decode(ids) == "a"
    assert tokenizer.decode(ids, keep_special=True) == "a" + END_OF_TEXT


def test_spellings_are_counted(tokenizer):
    assert tokenizer.count_special_spellings(f"x{END_OF_TEXT}{SEPARATOR} <|endof text|>") == 2


def test_lone_surrogate_is_a_data_error_that_names_the_text(tokenizer):
    with pytest.raises(DataError, match="text 1 holds a lone surrogate"):
        tokenizer.encode_batch(["fine", "bad \ud800"])


def test_transformers_loads_the_folder_with_equal_ids_and_adds_nothing(tokenizer, folder):
    transformers = pytest.importorskip("transformers")
    other = transformers.AutoTokenizer.from_pretrained(str(folder))
    text = "The quick  brown\n fox: é 漢 🦊 <|end"
    assert other(text)["input_ids"] == tokenizer.encode(text)
    assert other.decode(tokenizer.encode(text)) == text
    assert (other.eos_token_id, other.bos_token_id, len(other)) == (0, None, tokenizer.vocab_size)


def test_the_room_imports_neither_torch_nor_transformers():
    code = "import sys, megatron_synth.tokens; print({'torch', 'transformers'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


def test_fingerprint_follows_the_content_not_the_place(tokenizer, folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    content = json.loads((copy / "tokenizer.json").read_text())
    (copy / "tokenizer.json").write_text(json.dumps(content))  # other spacing, same content
    assert Tokenizer.load(copy).fingerprint == tokenizer.fingerprint
    config = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": SEPARATOR}))
    assert Tokenizer.load(copy).fingerprint != tokenizer.fingerprint


def test_padding_and_truncation_of_a_foreign_file_are_off(folder, tmp_path, tokenizer):
    model = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    model.enable_truncation(4)
    model.enable_padding(length=9)
    model.save(str(tmp_path / "tokenizer.json"))
    shutil.copy(folder / "tokenizer_config.json", tmp_path)
    other = Tokenizer.load(tmp_path)
    text = "a rather long text that is longer than four tokens"
    assert other.encode(text) == tokenizer.encode(text)
    assert other.fingerprint == tokenizer.fingerprint


def _word_model(folder: Path, config: dict) -> Path:
    """A model that holds its EOS as an ordinary word: text can produce the control token."""
    model = tokenizers.Tokenizer(models.WordLevel({"</s>": 0, "a": 1, "?": 2}, unk_token="?"))
    model.add_special_tokens([AddedToken("</s>", special=True)])
    folder.mkdir()
    model.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_a_tokenizer_that_makes_control_tokens_from_text_is_refused(tmp_path):
    folder = _word_model(tmp_path / "words", {"eos_token": "</s>"})
    with pytest.raises(DataError, match="becomes a control token"):
        Tokenizer.load(folder)


@pytest.mark.parametrize(
    "config", [{}, {"eos_token": None}, {"eos_token": "<absent>"}, {"eos_token": 3}]
)
def test_a_tokenizer_without_eos_is_refused(tmp_path, config):
    with pytest.raises(DataError, match="eos_token"):
        Tokenizer.load(_word_model(tmp_path / "words", config))


def test_mistakes_are_data_errors(tmp_path, folder):
    with pytest.raises(DataError, match="no such folder"):
        Tokenizer.load(tmp_path / "absent")
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        Tokenizer.load(tmp_path)
    shutil.copy(folder / "tokenizer.json", tmp_path)
    with pytest.raises(DataError, match=r"no tokenizer_config\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(DataError, match="JSON object"):
        Tokenizer.load(tmp_path)


def test_a_hub_name_without_a_hub_is_a_data_error(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataError, match="hub"):
        Tokenizer.load("someone/something")
