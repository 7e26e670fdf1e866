"""Nemotron-CC: NeMo Curator's own prompts, out of its module, through our contract."""

from typing import get_args

import pytest
from scripted import write_with

from megatron_synth.config import RunError
from megatron_synth.synthesis.answers import Unparseable
from megatron_synth.synthesis.config import NemotronPrompt
from megatron_synth.synthesis.methods.nemotron_cc import PARSERS, nemotron_prompt

VARIANTS = get_args(NemotronPrompt)
ANSWERS = {
    "diverse_qa": (
        "Here are the questions and answers:\n- Question: What? Answer: Bees.\n"
        "- Question: Who?\nAnswer: They.",
        None,
    ),
    "distill": ("Bees fly.", "Bees fly."),
    "extract_knowledge": ("Bees fly.\n\nThey sting.", "Bees fly.\n\nThey sting."),
    "knowledge_list": (
        "Here is the list:\n- Bees fly.\n  Far.\n* They sting.\n",
        "Bees fly. Far.\nThey sting.",
    ),
    "wikipedia": ("Here is a paraphrased version:\n\nBees are insects.", "Bees are insects."),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_prompt_is_what_curators_stage_would_send(make_prompted, variant):
    from nemo_curator.stages.synthetic.nemotron_cc import nemotron_cc as stages

    stage = {
        "diverse_qa": stages.DiverseQAStage,
        "distill": stages.DistillStage,
        "extract_knowledge": stages.ExtractKnowledgeStage,
        "knowledge_list": stages.KnowledgeListStage,
        "wikipedia": stages.WikipediaParaphrasingStage,
    }[variant]()
    method = make_prompted("nemotron_cc", nemotron_prompt=variant)
    item = next(method.items(0, 1))
    document, asked = write_with(method, item, lambda request: ANSWERS[variant][0])
    user = stage._process_llm_prompt({"text": method.source_text(item)})
    assert (asked[0][0].system, asked[0][0].prompt) == (stage.system_prompt, user)
    assert document.prompt.startswith(f"nemotron_cc_{variant}@")
    assert document.method == "nemotron_cc"


@pytest.mark.parametrize("variant", sorted(set(VARIANTS) - {"diverse_qa"}))
def test_answers_become_texts(variant):
    answer, text = ANSWERS[variant]
    assert PARSERS[variant](answer) == text


def test_pairs_are_kept_all_and_in_order_without_the_announcement():
    answer = (
        "Here are the questions and answers based on the provided text:\n"
        "- Question: What?\n  Answer: Bees.\n- Question: Who? \nAnswer: They."
    )
    assert PARSERS["diverse_qa"](answer) == (
        "Question: What?\nAnswer: Bees.\n\nQuestion: Who?\nAnswer: They."
    )


@pytest.mark.parametrize(
    ("variant", "answer"),
    [("diverse_qa", "Bees."), ("knowledge_list", "Bees."), ("knowledge_list", "- \n- ")]
    + [(variant, " \n") for variant in VARIANTS],
)
def test_an_answer_of_another_form_is_refused(variant, answer):
    with pytest.raises(Unparseable):
        PARSERS[variant](answer)


def test_a_curator_without_the_prompt_is_a_clear_error(monkeypatch):
    from nemo_curator.stages.synthetic.nemotron_cc import prompts

    monkeypatch.setattr(prompts, "DISTILL_PROMPT_TEMPLATE", "no field")
    with pytest.raises(RunError, match="has no prompt DISTILL_PROMPT_TEMPLATE"):
        nemotron_prompt("distill")
