"""Methods with one prompt and one form of answer: items, questions, tries, documents."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import write_with

from megatron_synth.config import ConfigError
from megatron_synth.engines import Completion
from megatron_synth.synthesis.answers import FORMS
from megatron_synth.synthesis.methods.asking import choice_of, request_seed
from megatron_synth.synthesis.methods.defaults import DEFAULTS
from megatron_synth.synthesis.prompts import load_prompt

TEXT = frozenset({"text"})
GOOD = {
    "rephrase_hq": "An article about bees.",
    "rephrase_qa": "**Question 1:** What?\nAnswer: Bees.",
    "rephrase_faithful": "We like bees.",
    "reformat": '<entry kind="factual"><topic>Bees</topic><content>They fly.</content></entry>',
    "faq": "Question: What?\nAnswer: Bees.",
    "table": "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n\nA sentence.",
    "math": "Problem: 1 + 1?\nSolution: 2",
    "tutorial": "Step 1. Take a bee.",
}
FORMLESS = {"rephrase_hq", "rephrase_faithful", "tutorial"}
MINE = "---\nname: mine\nversion: 1\nanswer: qa\n---\nAsk about: {{text}}\n"


@pytest.mark.parametrize("name", GOOD)
def test_each_method_asks_its_prompt_about_the_document_and_parses_the_answer(
    make_prompted, documents, name
):
    method = make_prompted(name)
    prompt = load_prompt(name, TEXT)
    item = next(method.items(0, 1))
    document, asked = write_with(method, item, lambda request: GOOD[name])
    [[request]] = asked
    assert request.prompt == prompt.fill({"text": documents[0].text})
    assert document.text == FORMS[prompt.answer](GOOD[name])
    assert document.prompt == prompt.identity
    defaults = DEFAULTS[name]
    assert request.sampling.temperature == defaults.temperature
    assert request.sampling.top_p == defaults.top_p
    assert request.sampling.max_tokens == defaults.max_output_tokens


def test_every_document_carries_its_provenance(make_prompted, tokenizer):
    method = make_prompted("rephrase_hq", generations=3, round=2)
    item = list(method.items(0, 1))[4]
    document, [[request]] = write_with(method, item, lambda request: "A new text.")
    assert (document.source_id, document.generation) == ("doc-1", 1)
    assert document.id == "doc-1/rephrase_hq-2-1"
    assert (document.method, document.round) == ("rephrase_hq", 2)
    assert document.generator == "generator@0"
    assert document.seed == request.sampling.seed == item.seed
    assert document.sampling == {"temperature": 0.7, "top_p": 0.95, "max_tokens": 1024}
    assert document.finish_reason == "stop"
    text = len(tokenizer.encode("A new text."))
    assert document.token_counts == {"prompt": 7, "output": 3, "text": text}
    assert document.metadata == {"request": 4, "requests": 1}
    assert method.source_text(item) == method.setting.seeds.text(1)


@given(shards=st.integers(1, 9), generations=st.integers(1, 5))
def test_shards_share_out_every_document_and_generation_once(make_prompted, shards, generations):
    method = make_prompted("faq", generations=generations)
    whole = list(method.items(0, 1))
    assert [item.index for item in whole] == list(range(40 * generations))
    assert method.total == len(whole)
    parts = [list(method.items(number, shards)) for number in range(shards)]
    assert sorted((i for part in parts for i in part), key=lambda i: i.index) == whole
    pairs = {(item.source_id, item.generation) for item in whole}
    assert len(pairs) == len(whole)
    for part in parts:  # a document's generations stay together: they share a prompt
        assert part == sorted(part, key=lambda i: i.index)


def test_generations_differ_by_their_seeds_alone(make_prompted):
    method = make_prompted("rephrase_hq", generations=4)
    requests = []
    for item in list(method.items(0, 1))[:8]:
        requests += write_with(method, item, lambda request: "x")[1][0]
    assert len({r.key for r in requests}) == len({r.sampling.seed for r in requests}) == 8
    assert len({r.prompt for r in requests}) == 2
    again = make_prompted("rephrase_hq", generations=4)
    assert list(again.items(0, 1)) == list(method.items(0, 1))
    other = make_prompted("rephrase_hq", generations=4, seed=1)
    assert {i.seed for i in other.items(0, 1)}.isdisjoint(i.seed for i in method.items(0, 1))


def test_an_answer_of_another_form_is_asked_for_again_with_another_seed(make_prompted):
    method = make_prompted("rephrase_qa")
    answers = iter(["no pairs", "none here", GOOD["rephrase_qa"]])
    item = next(method.items(0, 1))
    document, asked = write_with(method, item, lambda request: next(answers))
    requests = [request for [request] in asked]
    assert len(requests) == 3
    assert len({r.key for r in requests}) == len({r.sampling.seed for r in requests}) == 3
    assert len({r.prompt for r in requests}) == 1
    assert document.text == "Question: What?\nAnswer: Bees."
    assert document.seed == requests[-1].sampling.seed
    assert document.metadata["requests"] == 3
    assert (document.token_counts["prompt"], document.token_counts["output"]) == (21, 9)


@pytest.mark.parametrize("tries", [1, 3])
def test_after_the_last_try_the_document_is_a_failure_that_says_why(make_prompted, tries):
    method = make_prompted("math", tries=tries)
    document, asked = write_with(method, next(method.items(0, 1)), lambda request: "I cannot.")
    assert len(asked) == tries
    assert document.text == ""
    assert document.finish_reason == "error"
    assert document.metadata["failure"] == "unparseable"
    assert document.metadata["failure_message"] == "no problem with its solution"


def test_a_request_that_failed_for_good_is_not_asked_again(make_prompted):
    method = make_prompted("faq")
    document, asked = write_with(
        method,
        next(method.items(0, 1)),
        lambda request: Completion.failed(request.key, "x" * 1000, transient=False),
    )
    assert len(asked) == 1
    assert (document.text, document.finish_reason) == ("", "error")
    assert document.metadata["failure"] == "failed"
    assert document.metadata["failure_message"] == "x" * 300


def test_an_answer_that_was_cut_keeps_its_text_and_says_so(make_prompted):
    method = make_prompted("faq")
    cut = Completion("", GOOD["faq"] + "\n\nQuestion: And", finish_reason="length")
    document, _ = write_with(
        method, next(method.items(0, 1)), lambda request: replace(cut, key=request.key)
    )
    assert document.finish_reason == "length"
    assert document.text == "Question: What?\nAnswer: Bees."


def test_ids_without_text_are_decoded(make_prompted, tokenizer):
    method = make_prompted("tutorial")
    ids = tuple(tokenizer.encode("Take a bee."))
    document, _ = write_with(
        method, next(method.items(0, 1)), lambda request: Completion(request.key, token_ids=ids)
    )
    assert document.text == "Take a bee."


def test_only_our_own_vllm_is_told_where_answers_end(make_prompted, tokenizer):
    def stop_ids(method):
        return write_with(method, next(method.items(0, 1)), lambda r: "x")[1][0][
            0
        ].sampling.stop_ids

    endpoint = {"kind": "endpoint", "url": "http://127.0.0.1:1/v1", "model": "m"}
    assert stop_ids(make_prompted("tutorial")) == (tokenizer.eos_id,)
    assert stop_ids(make_prompted("tutorial", engine=endpoint)) == ()


def test_a_users_prompt_takes_the_place_of_ours(make_prompted, tmp_path, documents):
    path = tmp_path / "mine.md"
    path.write_text(MINE)
    method = make_prompted("rephrase_hq", prompt_file=path)
    document, [[request]] = write_with(
        method, next(method.items(0, 1)), lambda request: GOOD["rephrase_qa"]
    )
    assert request.prompt == f"Ask about: {documents[0].text}"
    assert document.prompt.startswith("mine@")
    assert document.text == "Question: What?\nAnswer: Bees."
    assert document.method == "rephrase_hq"


def test_two_files_for_one_prompt_are_refused(make_prompted, tmp_path):
    for name in ("a.md", "b.md"):
        (tmp_path / name).write_text(MINE)
    with pytest.raises(ConfigError, match="replaces the same prompt"):
        make_prompted("faq", prompt_file=[tmp_path / "a.md", tmp_path / "b.md"])


@pytest.mark.parametrize("name", sorted(set(GOOD) - FORMLESS))
def test_a_long_document_in_pieces_gives_one_document(make_prompted, name):
    method = make_prompted(name, max_input_tokens=40, long_input="chunk")
    counts = method.count_inputs()
    assert counts["inputs_chunked"] > 0
    item = max(method.items(0, 1), key=lambda i: method.setting.seeds.lengths[i.source_row])
    document, [requests] = write_with(method, item, lambda request: GOOD[name])
    assert len(requests) > 1
    assert len({r.key for r in requests}) == len(requests)
    prompt = load_prompt(name, TEXT)
    before, after = prompt.body.split("{{text}}")
    pieces = [r.prompt.removeprefix(before).removesuffix(after) for r in requests]
    assert "".join(pieces) == method.source_text(item)
    assert document.text == "\n\n".join([FORMS[prompt.answer](GOOD[name])] * len(requests))
    assert document.metadata["requests"] == len(requests)


def test_one_piece_that_cannot_be_parsed_is_asked_again_alone(make_prompted):
    method = make_prompted("faq", max_input_tokens=40, long_input="chunk")
    item = max(method.items(0, 1), key=lambda i: method.setting.seeds.lengths[i.source_row])
    bad: list[str] = []

    def script(request):
        if not bad:
            bad.append(request.prompt)
            return "nothing"
        return GOOD["faq"]

    document, asked = write_with(method, item, script)
    assert [len(requests) for requests in asked][1:] == [1]
    assert asked[1][0].prompt == bad[0]
    assert document.finish_reason == "stop"


def test_a_prompt_that_fills_the_context_is_refused(make_prompted):
    with pytest.raises(ConfigError, match=r"256 tokens leaves no room.*\n.*prompt-file"):
        make_prompted("rephrase_hq", context=256)


@given(seed=st.integers(0, 2**63 - 1), attempt=st.integers(0, 5))
def test_seeds_of_requests_are_what_engines_take_and_differ_by_try_and_part(seed, attempt):
    parts = [None, "piece 0", "piece 1"]
    seeds = [request_seed(seed, part, attempt) for part in parts]
    assert len(set(seeds)) == 3
    assert all(0 <= s < 2**63 for s in seeds)
    assert request_seed(seed, None, 0) == seed
    assert request_seed(seed, None, attempt + 1) != seed


def test_draws_from_a_seed_are_spread_evenly():
    counts = [0] * 4
    for seed in range(4000):
        counts[choice_of(seed, "audience", 4)] += 1
    assert min(counts) > 850
