"""Pieces are equal in tokens and rejoin to the exact text."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Model
from tokenizers import normalizers

from megatron_synth.synthesis.pieces import cut_points, cut_text, split_points
from megatron_synth.tokens import Tokenizer

SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@given(st.integers(0, 10**6), st.integers(1, 64))
def test_split_points_make_pieces_that_differ_by_one_token_at_most(tokens, pieces):
    borders = (0, *split_points(tokens, pieces), tokens)
    lengths = [right - left for left, right in pairwise(borders)]
    assert len(lengths) == pieces
    assert max(lengths) - min(lengths) <= 1


@SHARED
@given(text=st.text(st.characters(codec="utf-8"), max_size=80), pieces=st.integers(1, 9))
@example(text="🙂" * 9, pieces=9)  # four tokens a character: cuts inside one move behind it
@example(text="\ufffd" * 4, pieces=3)
@example(text="<|endoftext|> a <|endoftext|>", pieces=4)
def test_pieces_rejoin_to_the_exact_text_and_none_is_empty(tokenizer, text, pieces):
    cuts = cut_points(text, tokenizer, pieces)
    if cuts is None:
        assert len(tokenizer.encode(text)) < pieces or len(text.encode()) < 8 * pieces
        return
    parts = cut_text(text, cuts)
    assert len(parts) == pieces
    assert "".join(parts) == text
    assert all(parts)


def test_cuts_stand_at_the_tokens_of_the_whole_text(tokenizer, documents):
    text = documents[0].text
    ids = tokenizer.encode(text)
    cuts = cut_points(text, tokenizer, 4)
    expected = [tokenizer.decode(ids[:end]) for end in split_points(len(ids), 4)]
    assert [text[:cut] for cut in cuts] == expected


def test_a_text_too_short_has_no_pieces(tokenizer):
    assert cut_points("", tokenizer, 1) is None
    assert cut_points("a", tokenizer, 2) is None
    assert cut_points("🙂", tokenizer, 2) is None  # more tokens than one, but one character


@pytest.fixture(scope="module")
def lowering(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The same tokenizer, which lowers the case of what it encodes."""
    folder: Path = tmp_path_factory.mktemp("lowering")
    model = Model.from_file(str(tokenizer.folder / "tokenizer.json"))
    model.normalizer = normalizers.Lowercase()
    model.save(str(folder / "tokenizer.json"))
    config = (tokenizer.folder / "tokenizer_config.json").read_text()
    (folder / "tokenizer_config.json").write_text(config)
    return Tokenizer.load(folder)


def test_a_tokenizer_that_changes_the_text_still_cuts_it_evenly(lowering, documents):
    text = documents[0].text.upper()
    parts = cut_text(text, cut_points(text, lowering, 3))
    assert "".join(parts) == text
    lengths = [len(lowering.encode(part)) for part in parts]
    assert max(lengths) - min(lengths) <= 4
