"""Near-duplicates: against exact Jaccard, on made texts and on real ones."""

import collections
import gzip
import json
import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_synth.corpus.near_duplicates import NearDuplicates, NearDuplicatesConfig, bands_for
from megatron_synth.corpus.shingles import batch_shingles

WORDS = [f"{a}{b}{c}" for a in "bdfgklmn" for b in "aeiou" for c in "rstxz"]


def verdicts(texts, **config):
    near = NearDuplicates(NearDuplicatesConfig(**config))
    found = []
    for name, signature in enumerate(near.signatures(texts)):
        found.append(near.find(signature))
        if found[-1] is None:
            near.add(str(name), signature)
    return found


def text(seed, count=200):
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def jaccard(left, right, size=5):
    sets = batch_shingles([left, right], size)
    a, b = set(sets[0].tolist()), set(sets[1].tolist())
    return len(a & b) / len(a | b)


def changed(base, words):
    split = base.split()
    for place in random.Random(1).sample(range(len(split)), words):
        split[place] = "changed"
    return " ".join(split)


def test_a_few_changed_words_are_a_near_duplicate_and_many_are_not():
    base = text(0, 500)
    near, far = changed(base, 3), changed(base, 60)
    assert jaccard(base, near) > 0.9
    assert jaccard(base, far) < 0.6
    assert verdicts([text(1), base, far, near]) == [None, None, None, "1"]


def test_a_duplicate_names_the_first_of_several():
    base = text(3, 400)
    first, second = changed(base, 18), base  # two kept texts under the threshold of each other
    found = verdicts([first, second, changed(base, 1)], threshold=0.75)
    assert found[:2] == [None, "0"] or found == [None, None, "1"]


def test_case_punctuation_digits_and_line_breaks_make_no_difference():
    base = text(4)
    assert verdicts([base, base.upper().replace(" ", "\n", 20) + " 1, 2, 3!"]) == [None, "0"]


def test_short_texts_are_compared_as_a_whole_and_texts_without_words_never():
    found = verdicts(["two words", "Two  words!", "other words", "1 2 3", "4 5 6", "", "..."])
    assert found == [None, "0", None, None, None, None, None]


def test_scripts_without_spaces_have_shingles_too():
    base = "".join(chr(0x4E00 + random.Random(k).randrange(3000)) for k in range(300))
    assert verdicts([base, base[:-2] + "一二", base[::-1]]) == [None, "0", None]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("permutations", [16, 128, 256])
def test_bands_find_a_pair_at_the_threshold(threshold, permutations):
    bands = bands_for(threshold, permutations)
    assert permutations % bands == 0
    found = 1 - (1 - threshold ** (permutations // bands)) ** bands
    assert found >= 0.99 or bands == permutations


@settings(max_examples=30)
@given(groups=st.lists(st.integers(0, 8), min_size=1, max_size=30))
def test_of_each_group_of_equal_texts_exactly_the_first_is_kept(groups):
    found = verdicts([text(g, 60) for g in groups])
    kept = [g for g, verdict in zip(groups, found, strict=True) if verdict is None]
    assert kept == list(dict.fromkeys(groups))
    for group, verdict in zip(groups, found, strict=True):
        assert verdict is None or groups[int(verdict)] == group


def test_batches_and_the_order_inside_them_do_not_change_a_signature():
    texts = [text(k, 50 + k) for k in range(8)]
    near = NearDuplicates(NearDuplicatesConfig())
    together = [s.digest() for s in near.signatures(texts)]
    assert together == [near.signatures([t])[0].digest() for t in texts]
    other = NearDuplicates(NearDuplicatesConfig(seed=1)).signatures(texts)
    assert together != [s.digest() for s in other]


SCRIPT = """
from megatron_synth.corpus.near_duplicates import NearDuplicates, NearDuplicatesConfig
near = NearDuplicates(NearDuplicatesConfig(seed=7))
print(near.signatures(["one two three four five six seven", "two"])[0].digest())
"""


def test_another_process_gives_the_same_signature():
    done = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": str(k)},
        ).stdout
        for k in range(2)
    ]
    assert done[0] == done[1] != ""


def exact_similarities(texts, least):
    """{later: {earlier: Jaccard}} of all pairs over `least`, by counting what each pair shares."""
    sets = batch_shingles(texts, 5)
    holders = collections.defaultdict(list)
    sizes, found = [], {}
    for later in range(len(sets)):
        own = set(sets[later].tolist())
        sizes.append(len(own))
        common = collections.Counter()
        for value in own:
            common.update(holders[value])
            holders[value].append(later)
        for earlier, count in common.items():
            similar = count / (len(own) + sizes[earlier] - count)
            if similar > least:
                found.setdefault(later, {})[earlier] = similar
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "limit", "over_095", "over_08"),
    [("gov_web", None, 41, 81), ("wiki_en_min600", 6000, 7, 18)],
)
def test_known_near_duplicates_of_real_text_are_found_and_nothing_far_from_them(
    real_data, file, limit, over_095, over_08
):
    """`over_*`: documents with an earlier one of that exact Jaccard similarity, counted here."""
    with gzip.open(real_data / "corpus" / f"{file}.jsonl.gz", "rt", encoding="utf-8") as handle:
        texts = [json.loads(line)["text"] for line in handle][:limit]
    exact = exact_similarities(texts, 0.6)
    found = verdicts(texts)
    dropped = {k for k, verdict in enumerate(found) if verdict is not None}
    best = {k: max(earlier.values()) for k, earlier in exact.items()}
    assert sum(v > 0.95 for v in best.values()) == over_095
    assert sum(v > 0.8 for v in best.values()) == over_08
    assert {k for k, v in best.items() if v > 0.95} <= dropped
    # The estimate's standard error is 0.035: three of them either way.
    assert {
        k
        for k, earlier in exact.items()
        if any(v > 0.9 and found[other] is None for other, v in earlier.items())
    } <= dropped
    for k in dropped:
        assert exact[k][int(found[k])] > 0.7
