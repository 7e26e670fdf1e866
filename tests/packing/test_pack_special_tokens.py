"""What becomes of a special token's spelling inside a document."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_synth.packing import PackConfig, pack, paths_of
from megatron_synth.tokens import END_OF_TEXT, SEPARATOR, Tokenizer

SPECIALS = (END_OF_TEXT, SEPARATOR)
PIECE = st.sampled_from([*SPECIALS, "<|", "|>", "<|endoftext", " ", "\n", "alpha", "é", "🦊"])
TEXTS = st.lists(st.lists(PIECE, max_size=6).map("".join), min_size=1, max_size=5)


def _pack(folder, texts, tokenizer, policy, encoder):
    lines = (json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(texts))
    (folder / "in.jsonl").write_text("".join(lines))
    config = PackConfig(special_tokens=policy)
    return pack(folder / "in.jsonl", tokenizer, folder / "c", config=config, encoder=encoder)


def _ids(folder):
    return np.fromfile(paths_of(folder / "c").bin, dtype=np.uint16).tolist()


def _count(text):
    return sum(text.count(spelling) for spelling in SPECIALS)


@pytest.mark.parametrize("encoder", ["gigatoken", "tokenizer"])
def test_as_text_no_control_token_but_eos_and_all_spellings_counted(tmp_path, tokenizer, encoder):
    @settings(max_examples=40, deadline=None)
    @given(texts=TEXTS)
    def check(texts):
        packed = _pack(tmp_path, texts, tokenizer, "text", encoder)
        eos = [tokenizer.eos_id]
        assert _ids(tmp_path) == [i for t in texts if t for i in tokenizer.encode(t) + eos]
        assert packed.info.special_spellings == sum(map(_count, texts))
        assert packed.encoder == encoder

    check()


@pytest.mark.parametrize("encoder", ["gigatoken", "tokenizer"])
def test_kept_spellings_become_control_tokens_and_are_counted(tmp_path, tokenizer, encoder):
    @settings(max_examples=40, deadline=None)
    @given(texts=TEXTS)
    def check(texts):
        packed = _pack(tmp_path, texts, tokenizer, "keep", encoder)
        found = [number for number in _ids(tmp_path) if number in tokenizer.special_ids]
        ends = sum(bool(text) for text in texts)
        assert len(found) == ends + sum(map(_count, texts))
        assert packed.info.special_spellings == sum(map(_count, texts))

    check()


@pytest.mark.parametrize("encoder", ["gigatoken", "tokenizer"])
def test_rejected_rows_are_listed_with_the_spelling_and_the_rest_is_packed(
    tmp_path, tokenizer, encoder
):
    texts = ["alpha", f"beta {SEPARATOR}", "gamma", f"{END_OF_TEXT}{SEPARATOR}", "<|endoftext"]
    packed = _pack(tmp_path, texts, tokenizer, "reject", encoder)
    kept = [texts[i] for i in (0, 2, 4)]
    assert _ids(tmp_path) == [i for t in kept for i in [*tokenizer.encode(t), tokenizer.eos_id]]
    assert (packed.rows, packed.quarantined, packed.rejected) == (5, 0, 2)
    noted = [json.loads(line) for line in (tmp_path / "c.quarantine.jsonl").open()]
    assert [(n["line"], n["reason"]) for n in noted] == [
        (2, f"spells the special token {SEPARATOR!r}"),
        (4, f"spells the special token {END_OF_TEXT!r}"),
    ]
    import pyarrow.parquet as pq

    table = pq.read_table(paths_of(tmp_path / "c").provenance)
    assert table.column("id").to_pylist() == ["0", "2", "4"]


@pytest.mark.parametrize("encoder", ["gigatoken", "tokenizer"])
def test_a_spelled_unknown_token_is_text_too_and_counted(tmp_path, tokenizer, encoder):
    config = json.loads((tokenizer.folder / "tokenizer.json").read_text())
    config["model"]["unk_token"] = SEPARATOR
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END_OF_TEXT}))
    other = Tokenizer.load(folder)
    assert other.special_ids == {other.eos_id}
    texts = ["alpha", f"beta {SEPARATOR} x", "gamma"]
    packed = _pack(tmp_path, texts, other, "text", encoder)
    assert 1 not in _ids(tmp_path)
    assert packed.info.special_spellings == 1
    assert _pack(tmp_path, texts, other, "reject", encoder).rejected == 1
