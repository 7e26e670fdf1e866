import shutil
import subprocess
import sys

import pytest

from megatron_synth.blending import corpus_size
from megatron_synth.blending.sizes import path_prefix
from megatron_synth.config import DataError
from megatron_synth.corpus import Document, write_documents
from megatron_synth.packing import pack
from megatron_synth.tokens import train_tokenizer


def test_counts_of_an_indexed_dataset_alone(make_corpus):
    prefix = make_corpus("c", [5, 3, 9])
    size = corpus_size(prefix)
    assert (size.tokens, size.documents, size.tokenizer) == (17, 3, None)
    assert corpus_size(f"{prefix}_text_document") == size


def test_the_hash_follows_the_content_and_not_the_path(make_corpus, tmp_path):
    prefix = make_corpus("c", [5, 3, 9])
    (tmp_path / "elsewhere").mkdir()
    for ending in ("bin", "idx"):
        shutil.copy(f"{prefix}_text_document.{ending}", tmp_path / "elsewhere" / f"d.{ending}")
    assert corpus_size(tmp_path / "elsewhere" / "d") == corpus_size(prefix)
    data = tmp_path / "elsewhere" / "d.bin"
    data.write_bytes(data.read_bytes()[:-4] + b"\7\0\0\0")
    assert corpus_size(tmp_path / "elsewhere" / "d") != corpus_size(prefix)


def test_a_packed_corpus_has_the_same_hash_with_and_without_its_json(tmp_path):
    texts = ["one two three", "two three four", "three four five"] * 20
    tokenizer = train_tokenizer(texts, 270, tmp_path / "tokenizer")
    write_documents(tmp_path / "in.jsonl", [Document(f"d{i}", t) for i, t in enumerate(texts)])
    info = pack(tmp_path / "in.jsonl", tokenizer, tmp_path / "c").info
    size = corpus_size(tmp_path / "c")
    assert (size.tokens, size.documents) == (info.tokens, info.documents)
    assert (size.content_hash, size.tokenizer) == (info.content_hash, tokenizer.fingerprint)
    side = tmp_path / "c_text_document.json"
    side.write_text(side.read_text().replace(f'"tokens": {info.tokens}', '"tokens": 7'))
    with pytest.raises(DataError, match="not of one packing"):
        corpus_size(tmp_path / "c")
    side.unlink()
    assert corpus_size(tmp_path / "c").content_hash == info.content_hash


def test_a_missing_corpus_names_what_is_there(make_corpus, tmp_path):
    make_corpus("organic", [5])
    with pytest.raises(DataError, match="organic_text_document"):
        corpus_size(tmp_path / "organics")
    with pytest.raises(DataError, match="no indexed dataset"):
        corpus_size(tmp_path / "no" / "folder")


def test_damaged_files_are_refused(make_corpus):
    prefix = make_corpus("c", [5, 3, 9])
    base = path_prefix(prefix)
    data, index = base.with_name(f"{base.name}.bin"), base.with_name(f"{base.name}.idx")
    whole, whole_index = data.read_bytes(), index.read_bytes()
    data.write_bytes(whole[:-4])
    with pytest.raises(DataError, match="64 bytes, but the \\.idx says 17 tokens"):
        corpus_size(prefix)
    data.write_bytes(whole)
    for cut, message in ((whole_index[:-8], "cut short"), (whole_index[:20], "too short")):
        index.write_bytes(cut)
        with pytest.raises(DataError, match=message):
            corpus_size(prefix)
    index.write_bytes(b"x" * 100)
    with pytest.raises(DataError, match="not a Megatron indexed dataset"):
        corpus_size(prefix)
    index.unlink()
    with pytest.raises(DataError, match="half of an indexed dataset"):
        corpus_size(prefix)


def test_an_empty_corpus_is_refused(write_corpus, tmp_path):
    with pytest.raises(DataError, match="empty"):
        corpus_size(write_corpus(tmp_path / "c", []))


def test_planning_needs_no_torch():
    code = (
        "import sys, megatron_synth.blending as b; b.solve; b.Ledger; b.corpus_size;"
        "assert not {'torch', 'megatron.core', 'pyarrow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
