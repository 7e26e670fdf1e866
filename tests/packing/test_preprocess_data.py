"""`tools/preprocess_data.py` and the verb `pack`, as a user runs them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_synth.packing import PackConfig, pack
from megatron_synth.tokens import END_OF_TEXT

TOOL = Path(__file__).parents[2] / "tools" / "preprocess_data.py"
pytestmark = pytest.mark.slow


@pytest.fixture
def corpus(tmp_path):
    rows = [{"text": f"alpha {i} δ", "title": [f"t {i}", "", "beta"]} for i in range(50)]
    rows.append({"text": f"quotes {END_OF_TEXT}", "title": "x"})
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "in.jsonl"


def _tool(*arguments):
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _verb(*arguments):
    command = [sys.executable, "-m", "megatron_synth.cli", "pack", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_megatron_lms_command_line_writes_megatron_lms_files(tmp_path, tokenizer, corpus):
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    ran = _tool(
        *("--input", corpus, "--output-prefix", tmp_path / "out" / "c"),
        *("--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", tokenizer.folder),
        *("--append-eod", "--json-keys", "text", "title", "--workers", "2"),
    )
    assert ran.returncode == 0, ran.stderr
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    endings = ("bin", "idx", "json")
    assert names == sorted(f"c_{k}_document.{e}" for k in ("text", "title") for e in endings)
    texts = IndexedDataset(str(tmp_path / "out" / "c_text_document"))
    assert texts[3].tolist() == [*tokenizer.encode("alpha 3 δ"), tokenizer.eos_id]
    titles = IndexedDataset(str(tmp_path / "out" / "c_title_document"))
    assert titles.document_indices.tolist()[:3] == [0, 2, 4]
    assert titles[1].tolist() == [*tokenizer.encode("beta"), tokenizer.eos_id]
    assert "1 special tokens spelled in texts (text)" in ran.stderr


def test_mistakes_get_one_message_and_status_2(tmp_path, tokenizer, corpus):
    common = ("--input", corpus, "--output-prefix", tmp_path / "c", "--tokenizer-model")
    ran = _tool(*common, tokenizer.folder, "--tokenizer-type", "SentencePieceTokenizer")
    assert ran.returncode == 2
    assert "this is for a HuggingFaceTokenizer" in ran.stderr
    ran = _tool(*common, tmp_path / "absent.model")
    assert (ran.returncode, "Traceback" in ran.stderr) == (2, False)
    ran = _tool(*common, tokenizer.folder, "--quarantine-limit", "2")
    assert (ran.returncode, "Traceback" in ran.stderr) == (2, False)
    ran = _verb(corpus, "--tokenizer", tokenizer.folder, "--out", tmp_path / "o", "special=text")
    assert ran.returncode == 2
    assert "did you mean 'special_tokens'?" in ran.stderr


def test_the_verb_writes_a_manifest_and_does_nothing_the_second_time(tmp_path, tokenizer, corpus):
    arguments = (corpus, "--tokenizer", tokenizer.folder, "--out", tmp_path / "o", "--json")
    ran = _verb(*arguments)
    assert ran.returncode == 0, ran.stderr
    answer = json.loads(ran.stdout)
    assert answer["infos"]["corpus_text_document"]["documents"] == 51
    manifest = json.loads((tmp_path / "o" / "manifest.json").read_text())
    assert manifest["tokenizer"] == tokenizer.fingerprint
    assert set(manifest["files"]) == {
        f"corpus_text_document.{ending}" for ending in ("bin", "idx", "json", "provenance.parquet")
    }
    pack(corpus, tokenizer, tmp_path / "direct" / "corpus")
    for name in manifest["files"]:
        assert (tmp_path / "o" / name).read_bytes() == (tmp_path / "direct" / name).read_bytes()
    before = (tmp_path / "o" / "corpus_text_document.bin").stat().st_mtime_ns
    again = _verb(*arguments)
    assert json.loads(again.stdout) == answer
    assert (tmp_path / "o" / "corpus_text_document.bin").stat().st_mtime_ns == before
    other = _verb(*arguments, "special_tokens=reject")
    assert other.returncode == 2
    assert "holds another product already" in other.stderr


def test_the_verb_leaves_only_what_it_made_and_refuses_names(tmp_path, tokenizer, corpus):
    pack(corpus, tokenizer, tmp_path / "o" / "corpus", config=PackConfig(output_mb=1))
    assert (tmp_path / "o" / "corpus-00000_text_document.bin").is_file()
    ran = _verb(corpus, "--tokenizer", tokenizer.folder, "--out", tmp_path / "o", "--json")
    assert ran.returncode == 2
    assert "holds other files" in ran.stderr
    (tmp_path / ".o.unfinished").touch()  # as the verb leaves it when it is killed
    ran = _verb(corpus, "--tokenizer", tokenizer.folder, "--out", tmp_path / "o", "--json")
    assert ran.returncode == 0, ran.stderr
    files = {p.name for p in (tmp_path / "o").iterdir()}
    manifest = json.loads((tmp_path / "o" / "manifest.json").read_text())
    assert files == {"manifest.json", *manifest["files"]}
    assert not [name for name in files if name.startswith("corpus-")]
    for name in ("", "a/b"):
        ran = _verb(corpus, "--tokenizer", "x", "--out", tmp_path / "p", "--name", name)
        assert ran.returncode == 2
        assert "--name is" in ran.stderr
    ran = _verb("hf://a/b", "--tokenizer", tokenizer.folder, "--out", tmp_path / "q")
    assert ran.returncode == 2
