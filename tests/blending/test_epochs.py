import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_synth.blending import epochs, kernels
from megatron_synth.blending.documents import Documents, Index
from megatron_synth.blending.epochs import EpochOrder

TOKEN_BYTES = 2


def documents(lengths):
    lengths = np.array(lengths, dtype=np.int32)
    ends = np.cumsum(lengths, dtype=np.int64) * TOKEN_BYTES
    pointers = ends - lengths.astype(np.int64) * TOKEN_BYTES
    borders = np.arange(len(lengths) + 1)
    return Documents(Index(lengths, pointers, borders, int(lengths.sum()), TOKEN_BYTES))


def order(lengths, sequence_length, draw=0, seed=1):
    return EpochOrder(documents(lengths), sequence_length, seed=seed, corpus="c", draw=draw)


@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=150),
    sequence_length=st.integers(1, 50),
    draw=st.integers(0, 3),
)
@settings(max_examples=150, deadline=None)
def test_an_epoch_holds_every_token_once_but_the_dropped_remainder(lengths, sequence_length, draw):
    tokens = sum(lengths)
    if tokens <= sequence_length:
        return
    epoch = order(lengths, sequence_length, draw)
    assert epoch.windows == (tokens - 1) // sequence_length
    turns = np.arange(epoch.windows)
    pieces = epoch.pieces(turns)
    assert np.bincount(pieces.window, pieces.length).tolist() == [sequence_length + 1] * len(turns)
    starts = np.cumsum([0, *lengths])
    used = np.zeros(tokens, dtype=int)  # as an input: all of a window but its last token
    for turn in turns:
        mine = pieces.window == turn
        window = np.concatenate(
            [
                np.arange(starts[d] + o, starts[d] + o + n)
                for d, o, n in zip(
                    pieces.document[mine], pieces.offset[mine], pieces.length[mine], strict=True
                )
            ]
        )
        used[window[:-1]] += 1
        begins = starts[pieces.document[mine]] + pieces.offset[mine]
        assert pieces.begin[mine].tolist() == begins.tolist()
    assert used.max() == 1
    assert used.sum() == tokens - 1 - (tokens - 1) % sequence_length


@given(st.lists(st.integers(0, 3999), min_size=1, max_size=40))
@settings(max_examples=50, deadline=None)
def test_windows_asked_for_together_are_those_asked_for_alone(turns):
    epoch = order(np.random.default_rng(0).integers(1, 90, 900), 10)
    together = epoch.pieces(np.array(turns) % epoch.windows)
    for i, turn in enumerate(turns):
        alone = epoch.pieces(np.array([turn]) % epoch.windows)
        mine = together.window == i
        assert all((a == b[mine]).all() for a, b in zip(alone[1:], together[1:], strict=True))


def test_order_depends_on_seed_and_draw():
    lengths = np.full(100, 9)
    documents = {
        (seed, draw): order(lengths, 8, draw, seed).pieces(np.arange(50)).document.tolist()
        for seed in (1, 2)
        for draw in (0, 1)
    }
    assert len({tuple(d) for d in documents.values()}) == 4


def test_the_first_quarter_of_an_epoch_repeats_no_document():
    """Stock Megatron shuffles epochs together: there a document may come twice before another."""
    epoch = order(np.full(1000, 8), 8)  # a window's inputs are exactly one document
    pieces = epoch.pieces(np.arange(epoch.windows // 4))
    whole = pieces.document[pieces.length == 8]
    assert len(whole) == epoch.windows // 4 == len(np.unique(whole))


@pytest.mark.parametrize("documents", [32, 33, 64, 1])
def test_block_borders_are_no_special_case(documents):
    epoch = order([6] * documents, 3)  # windows end where blocks of 32 documents do
    pieces = epoch.pieces(np.arange(epoch.windows))
    assert pieces.length.sum() == epoch.windows * 4


def test_token_counts_beyond_32_bits():
    epoch = order(np.full(10_000, 2**30), 4096)
    assert epoch.tokens == 10_000 * 2**30
    last = epoch.pieces(np.array([epoch.windows - 1, 0]))
    assert np.bincount(last.window, last.length).tolist() == [4097, 4097]


@pytest.mark.slow
def test_documents_beyond_32_bits(monkeypatch):
    """Three thousand million documents of 7 tokens; their index is known without counting."""
    count, length = 3_000_000_000, 7
    blocks = -(-count // kernels.STRIDE)
    before = np.arange(blocks + 1) * (kernels.STRIDE * length)
    before[-1] = count * length
    monkeypatch.setattr(epochs, "_tokens_before", lambda *_: before)
    index = Index(
        np.broadcast_to(np.int32(length), count),
        np.broadcast_to(np.int64(0), count),
        np.broadcast_to(np.int64(0), count + 1),
        count * length,
        TOKEN_BYTES,
    )
    table = Documents(index).table._replace(single=True)
    every = Documents(index)
    every.table = table
    epoch = EpochOrder(every, 4, seed=1, corpus="c", draw=0)
    assert epoch.windows == (count * length - 1) // 4 > 2**32
    turns = np.array([0, 2**31 + 1, epoch.windows - 1, *range(2**32, 2**32 + 900)])
    pieces = epoch.pieces(turns)
    assert np.bincount(pieces.window, pieces.length).tolist() == [5] * len(turns)
    assert pieces.document.min() >= 0 and pieces.document.max() < count
    assert (pieces.document > 2**31).mean() == pytest.approx(1 - 2**31 / count, abs=0.05)
    assert (pieces.offset + pieces.length <= length).all()
