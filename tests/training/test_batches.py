import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_training import ApartWindows, Windows

from megatron_synth.config import ConfigError, DataError
from megatron_synth.training import TrainConfig
from megatron_synth.training.batches import BatchPlan, BatchReader, read_batch


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_ranks_together_hold_each_sample_once(size, ranks, number):
    whole = size * ranks * number
    plans = [BatchPlan(whole, size, ranks, rank) for rank in range(ranks)]
    places = [place for plan in plans for batch in plan.places() for place in batch]
    assert sorted(places) == list(range(whole))


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_micro_batches_are_the_same_however_many_ranks(size, ranks, number):
    whole = size * ranks * number
    alone = BatchPlan(whole, size, 1, 0).places()
    shared = [batch for r in range(ranks) for batch in BatchPlan(whole, size, ranks, r).places()]
    assert sorted(alone) == sorted(shared)


def test_sample_k_of_step_t_is_item_t_times_batch_plus_k():
    seen = []

    class Recorder(Windows):
        def __getitem__(self, index):
            seen.append(index)
            return super().__getitem__(index)

    reader = BatchReader(Recorder(100), BatchPlan(4, 2, 1, 0), 32)
    batches = list(reader.read(3, 5))
    assert seen == list(range(8, 20))
    assert torch.equal(batches[0][1]["tokens"][0], Windows(100)[10]["tokens"])


def test_samples_beyond_the_end_count_nowhere():
    batches = read_batch(Windows(3), BatchPlan(4, 2, 1, 0), 0, 32)
    assert batches[1]["loss_mask"][1].sum() == 0
    assert batches[1]["loss_mask"][0].sum() > 0


def test_windows_of_another_length_are_refused():
    with pytest.raises(DataError, match="windows have 32 tokens, sequence_length is 64"):
        read_batch(Windows(3), BatchPlan(2, 2, 1, 0), 0, 64)


def test_where_documents_begin_goes_along_for_all_windows_or_for_none():
    batches = read_batch(ApartWindows(4), BatchPlan(4, 2, 1, 0), 0, 32)
    assert [tuple(batch["cu_seqlens"].shape) for batch in batches] == [(2, 33), (2, 33)]
    assert batches[0]["cu_seqlens"][1, :5].tolist() == [0, 4, 10, 30, 32]

    class Mixed(ApartWindows):
        def __getitem__(self, index):
            return super().__getitem__(index) if index else Windows.__getitem__(self, index)

    with pytest.raises(DataError, match="some windows keep documents apart"):
        read_batch(Mixed(4), BatchPlan(4, 2, 1, 0), 0, 32)


def test_an_error_in_the_data_reaches_the_caller():
    class Broken(Windows):
        def __getitem__(self, index):
            if index == 6:
                raise DataError("damaged")
            return super().__getitem__(index)

    with pytest.raises(DataError, match="damaged"):
        list(BatchReader(Broken(100), BatchPlan(4, 2, 1, 0), 32).read(1, 5))


def test_a_batch_that_ranks_cannot_share_is_refused():
    config = TrainConfig(steps=1, micro_batch_size=4, global_batch_size=8)
    assert config.micro_batches(2) == 1
    with pytest.raises(ConfigError, match="4 x 3"):
        config.micro_batches(3)
