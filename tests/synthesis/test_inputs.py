"""Long source documents: cut, in pieces, or left out, never without a count."""

import numpy as np
import pytest

from megatron_synth.config import ConfigError
from megatron_synth.synthesis import SynthesisConfig
from megatron_synth.synthesis.methods.inputs import Inputs, input_limit, longest_answer

CONFIG = SynthesisConfig(method="rephrase_hq")


def test_a_short_document_is_used_whole(seeds, tokenizer):
    for policy in ("cut", "chunk", "skip"):
        inputs = Inputs(policy, 10_000, seeds, tokenizer)
        assert [inputs.texts(row) for row in range(3)] == [(seeds.text(r),) for r in range(3)]
        assert set(inputs.counts().values()) == {0}
        assert len(inputs.rows) == len(seeds)


def test_cut_keeps_the_beginning_up_to_the_limit(seeds, tokenizer):
    inputs = Inputs("cut", 60, seeds, tokenizer)
    long = seeds.lengths > 60
    assert inputs.counts() == {"inputs_cut": long.sum()}
    assert 0 < long.sum() < len(seeds)
    for row in range(len(seeds)):
        [text] = inputs.texts(row)
        assert seeds.text(row).startswith(text)
        assert (text == seeds.text(row)) == (not long[row])
        if long[row]:
            assert 58 <= len(tokenizer.encode(text)) <= 60


def test_chunk_divides_into_equal_pieces_that_join_to_the_whole(seeds, tokenizer):
    inputs = Inputs("chunk", 50, seeds, tokenizer)
    assert inputs.counts() == {"inputs_chunked": (seeds.lengths > 50).sum()}
    for row in range(len(seeds)):
        texts = inputs.texts(row)
        assert "".join(texts) == seeds.text(row)
        assert len(texts) == -(-seeds.lengths[row] // 50)
        assert all(len(tokenizer.encode(text)) <= 52 for text in texts)


def test_skip_leaves_out_long_documents(seeds, tokenizer):
    inputs = Inputs("skip", 60, seeds, tokenizer)
    assert inputs.rows.tolist() == np.flatnonzero(seeds.lengths <= 60).tolist()
    assert inputs.counts() == {"inputs_skipped": len(seeds) - len(inputs.rows)}


def test_documents_too_short_for_the_method_are_counted(seeds, tokenizer):
    least = int(np.median(seeds.lengths))
    inputs = Inputs("cut", 10_000, seeds, tokenizer, least=least)
    assert inputs.counts()["inputs_too_short"] == (seeds.lengths < least).sum()
    assert (seeds.lengths[inputs.rows] >= least).all()


def test_no_document_left_is_a_clear_error(seeds, tokenizer):
    with pytest.raises(ConfigError, match="no source document can be used: 40 are longer than 16"):
        Inputs("skip", 16, seeds, tokenizer)


def test_the_limit_is_the_settings_or_what_the_context_leaves():
    assert longest_answer(CONFIG, 8192) == 1024
    assert longest_answer(CONFIG, 1000) == 500
    assert input_limit(CONFIG, 8192, 300, 1024) == 2048
    assert input_limit(CONFIG, 2048, 300, 1024) == 2048 - 300 - 1024 - 64
    with pytest.raises(ConfigError, match="leaves no room"):
        input_limit(CONFIG, 1024, 300, 700)
