"""Synthesizer tuning's loss against a hand-made example, token by token (METHODS 1, step 4)."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from megatron_synth.blending import PairWindows
from megatron_synth.models import ModelConfig, build_model
from megatron_synth.runtime import initialize
from megatron_synth.training.batches import BatchPlan, read_batch
from megatron_synth.training.forward import run_batch

EOS, SEPARATOR, LENGTH = 0, 99, 16
DOCUMENTS = ([11, 12, 13], [21, 22], [31, 32, 33, 34])
MODEL = ModelConfig(
    num_layers=2, hidden_size=64, num_attention_heads=2, ffn_hidden_size=96, vocab_size=256
)


def pack(folder, documents):
    builder = IndexedDatasetBuilder(str(folder / "c_text_document.bin"), dtype=np.int32)
    for document in documents:
        tokens = torch.tensor([*document, EOS])
        builder.add_document(tokens, [len(tokens)])
    builder.finalize(str(folder / "c_text_document.idx"))
    return folder / "c"


def window(folder, pairs, documents=DOCUMENTS):
    folder.mkdir(exist_ok=True)
    path = folder / "pairs.parquet"
    pq.write_table(pa.table({"d1": [a for a, _ in pairs], "d2": [b for _, b in pairs]}), path)
    return PairWindows(
        pack(folder, documents),
        path,
        sequence_length=LENGTH,
        eos_id=EOS,
        separator_id=SEPARATOR,
        pairs_per_window="packed",
    )


@pytest.fixture(scope="module")
def model():
    initialize(threads=1)
    built = build_model(MODEL, sequence_length=LENGTH, seed=1)
    built.eval()
    return built


def loss_of(model, windows):
    batch = read_batch(windows, BatchPlan(1, 1, 1, 0), 0, LENGTH)
    with torch.no_grad():
        return run_batch(model, batch, global_batch_size=1, sequence_length=LENGTH, train=False)


def minus_log_probability(model, first, second):
    """-log p(second EOS given first separator), one token after the other."""
    total = 0.0
    text = [*first, SEPARATOR]
    for token in [*second, EOS]:
        inputs = torch.tensor([text])
        positions = torch.arange(len(text))[None]
        with torch.no_grad():
            logits = model(input_ids=inputs, position_ids=positions, attention_mask=None)
        row = logits.reshape(len(text), -1)[-1, : MODEL.vocab_size].double()
        total += float(torch.logsumexp(row, 0) - row[token])
        text.append(token)
    return total


def test_the_loss_is_that_of_the_second_documents_alone_pair_by_pair(model, tmp_path):
    windows = window(tmp_path, [(0, 1), (1, 2)])
    assert (windows.windows, windows.pairs) == (1, 2)
    found = loss_of(model, windows)
    # d2 and its EOS: 2 + 1 and 4 + 1 tokens; nothing of d1, of the separators, of the padding.
    assert found.tokens.tolist() == [8]
    wanted = [minus_log_probability(model, DOCUMENTS[a], DOCUMENTS[b]) for a, b in [(0, 1), (1, 2)]]
    assert found.nll.tolist() == pytest.approx([sum(wanted)], rel=1e-4)


def test_a_pair_does_not_see_the_pair_beside_it(model, tmp_path):
    one = float(loss_of(model, window(tmp_path / "a", [(0, 1)])).nll)
    two = float(loss_of(model, window(tmp_path / "b", [(1, 2)])).nll)
    both = float(loss_of(model, window(tmp_path / "c", [(0, 1), (1, 2)])).nll)
    assert both == pytest.approx(one + two, rel=1e-4)
    changed = ([111, 112, 113], *DOCUMENTS[1:])
    other = float(loss_of(model, window(tmp_path / "d", [(0, 1), (1, 2)], changed)).nll)
    assert other != pytest.approx(both, rel=1e-4)  # d1 is read ...
    alone = float(loss_of(model, window(tmp_path / "e", [(0, 1)], changed)).nll)
    assert other - alone == pytest.approx(two, rel=1e-3)  # ... by its own pair alone
