"""Compiled loops of pairing (numba)."""

from typing import Any

import numpy as np

from megatron_synth.runs.compiling import compiled


@compiled
def share_a_number(numbers: Any, offsets: Any, first: Any, second: Any) -> Any:
    """Of each pair of lists, whether some number stands in both: bool [m].

    Args:
        numbers: int64, list after list, each ascending.
        offsets: int64 [lists + 1], where each list begins.
        first: int64 [m], lists.
        second: int64 [m], lists.
    """
    found = np.zeros(len(first), np.bool_)
    for pair in range(len(first)):
        a, a_end = offsets[first[pair]], offsets[first[pair] + 1]
        b, b_end = offsets[second[pair]], offsets[second[pair] + 1]
        while a < a_end and b < b_end:
            if numbers[a] == numbers[b]:
                found[pair] = True
                break
            if numbers[a] < numbers[b]:
                a += 1
            else:
                b += 1
    return found


@compiled
def join_both_ways(d1: Any, d2: Any, similarity: Any, documents: Any) -> Any:
    """The undirected graph of directed relations, each neighbour once.

    Args:
        d1: int64 [m].
        d2: int64 [m].
        similarity: float32 [m]; where both directions are given, the larger one counts.
        documents: Numbers are below this.

    Returns:
        begins, ends: int64 [documents]; neighbours int64 and similarities float32 of document i are
        at `begins[i]` to `ends[i]`, most similar first, then by number.
    """
    begins = np.zeros(documents + 1, np.int64)
    for i in range(len(d1)):
        if d1[i] != d2[i]:
            begins[d1[i] + 1] += 1
            begins[d2[i] + 1] += 1
    for i in range(documents):
        begins[i + 1] += begins[i]
    ends = begins[:documents].copy()
    neighbours = np.empty(begins[documents], np.int64)
    similarities = np.empty(begins[documents], np.float32)
    for i in range(len(d1)):
        if d1[i] != d2[i]:
            for way in range(2):
                a, b = (d1[i], d2[i]) if way == 0 else (d2[i], d1[i])
                neighbours[ends[a]] = b
                similarities[ends[a]] = similarity[i]
                ends[a] += 1
    for i in range(documents):
        begin, end = begins[i], ends[i]
        by_number = np.argsort(neighbours[begin:end], kind="mergesort")
        numbers = neighbours[begin:end][by_number]
        values = similarities[begin:end][by_number]
        kept = 0
        for j in range(len(numbers)):
            if kept and numbers[kept - 1] == numbers[j]:
                values[kept - 1] = max(values[kept - 1], values[j])
            else:
                numbers[kept], values[kept] = numbers[j], values[j]
                kept += 1
        by_similarity = np.argsort(-values[:kept], kind="mergesort")
        neighbours[begin : begin + kept] = numbers[:kept][by_similarity]
        similarities[begin : begin + kept] = values[:kept][by_similarity]
        ends[i] = begin + kept
    return begins[:documents], ends, neighbours, similarities


@compiled
def walk(begins: Any, ends: Any, neighbours: Any, similarities: Any, starts: Any) -> Any:
    """Visit every document once: the nearest unvisited neighbour, else the next of `starts`.

    Args:
        begins: int64 [n]: see `join_both_ways`.
        ends: int64 [n].
        neighbours: int64, most similar first.
        similarities: float32.
        starts: int64 [n], every document, in the order in which they are jumped to.

    Returns:
        Documents in order, int64 [n]; similarity of each to the one before, float32 [n], NaN after
        a jump.
    """
    order = np.empty(len(starts), np.int64)
    steps = np.full(len(starts), np.nan, np.float32)
    visited = np.zeros(len(starts), np.bool_)
    tried = 0
    for place in range(len(starts)):
        following = -1
        if place:
            current = order[place - 1]
            for edge in range(begins[current], ends[current]):
                if not visited[neighbours[edge]]:
                    following = neighbours[edge]
                    steps[place] = similarities[edge]
                    break
        while following < 0:
            if not visited[starts[tried]]:
                following = starts[tried]
            tried += 1
        order[place] = following
        visited[following] = True
    return order, steps
