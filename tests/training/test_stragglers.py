"""A rank that the others wait for is named."""

import logging

import pytest
import torch.distributed as dist

from megatron_synth.runtime import initialize
from megatron_synth.training import stragglers
from megatron_synth.training.stragglers import Stragglers


@pytest.fixture
def eight():
    """What rank 0 of eight would say."""
    initialize(threads=1)
    found = Stragglers(lambda: None)
    found._hosts = [f"node{rank // 4}" for rank in range(8)]
    return found


def times(rank, seconds):
    return [seconds if number == rank else 1.0 for number in range(8)]


def test_a_rank_that_is_slow_for_long_is_named_once_with_its_host(eight, caplog):
    with caplog.at_level(logging.WARNING, logger=stragglers._log.name):
        for _ in range(stragglers._OFTEN * 3):
            assert eight._judged(times(5, 1.5)) == {"slowest": 5.0, "over_median": 1.5}
    assert [r.getMessage() for r in caplog.records] == [
        "rank 5 on node1 has been the slowest for 20 steps: 1.5 times the median"
    ]


@pytest.mark.parametrize("pattern", [[(5, 1.1)], [(5, 1.5), (6, 1.5)], [(5, 1.5)] * 19 + [(5, 1)]])
def test_ranks_that_are_little_slower_or_take_turns_are_not(pattern, eight, caplog):
    with caplog.at_level(logging.WARNING, logger=stragglers._log.name):
        for step in range(60):
            eight._judged(times(*pattern[step % len(pattern)]))
    assert not caplog.records


def test_one_rank_waits_for_nobody(eight):
    assert dist.get_world_size() == 1
    assert eight.compare() is None
