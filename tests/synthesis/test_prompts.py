"""Prompt files: those that come with the package, and a user's own."""

import pytest

from megatron_synth.config import ConfigError
from megatron_synth.synthesis.answers import FORMS
from megatron_synth.synthesis.prompts import load_prompt, prompt_names

TEXT = frozenset({"text"})
FIELDS = {
    "textbook_outline": frozenset({"text", "audience"}),
    "textbook_chapter": frozenset({"audience", "outline", "chapter"}),
    "latent_thoughts": frozenset({"prefix", "suffix"}),
}
GOOD = "---\nname: mine\nversion: 2\nanswer: qa\n---\nAsk about {{text}}.\n"


def write(folder, content):
    path = folder / "mine.md"
    path.write_text(content, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", prompt_names())
def test_each_prompt_of_the_package_is_named_by_its_file_and_uses_its_methods_fields(name):
    prompt = load_prompt(name, FIELDS.get(name, TEXT))
    assert prompt.name == name
    assert prompt.answer in FORMS


@pytest.mark.parametrize("name", sorted(set(prompt_names()) - FIELDS.keys()))
def test_the_document_stands_after_the_instructions_so_that_their_beginning_is_shared(name):
    body = load_prompt(name, TEXT).body
    assert body.index("{{text}}") > 0.8 * len(body)


def test_the_prompts_of_all_prompted_methods_are_there():
    assert set(prompt_names()) >= {
        "rephrase_hq", "rephrase_qa", "rephrase_faithful", "reformat", "textbook_outline",
        "textbook_chapter", "latent_thoughts", "faq", "table", "math", "tutorial",
    }  # fmt: skip


def test_a_users_file_takes_the_place_of_a_prompt(tmp_path):
    prompt = load_prompt(write(tmp_path, GOOD), TEXT)
    assert (prompt.name, prompt.version, prompt.answer) == ("mine", 2, "qa")
    assert prompt.fill({"text": "bees"}) == "Ask about bees."


def test_what_a_document_says_in_braces_is_left_as_it_is(tmp_path):
    prompt = load_prompt(write(tmp_path, GOOD), TEXT)
    hostile = r"{{text}} {{ other }} {0} \1 \g<0>"
    assert prompt.fill({"text": hostile}) == f"Ask about {hostile}."


def test_the_identity_changes_with_the_content_and_not_with_the_version(tmp_path):
    first = load_prompt(write(tmp_path, GOOD), TEXT).identity
    assert first.startswith("mine@")
    assert (
        load_prompt(write(tmp_path, GOOD.replace("version: 2", "version: 3")), TEXT).identity
        == first
    )
    assert load_prompt(write(tmp_path, GOOD.replace("Ask", "Asks")), TEXT).identity != first
    assert load_prompt(write(tmp_path, GOOD.replace("qa", "text")), TEXT).identity != first


def test_a_prompt_file_may_have_a_system_message_which_is_part_of_what_it_is(tmp_path):
    plain = load_prompt(write(tmp_path, GOOD), TEXT)
    content = GOOD.replace("answer: qa", "answer: qa\nsystem: You are a teacher.")
    prompt = load_prompt(write(tmp_path, content), TEXT)
    assert (plain.system, prompt.system) == (None, "You are a teacher.")
    assert prompt.body == plain.body
    assert prompt.identity != plain.identity
    assert prompt.wording == f"You are a teacher.\n\n{plain.body}"


@pytest.mark.parametrize(
    ("method", "fields", "answer"),
    [
        ("rephrase_hq", "{{text}}", "text"),
        ("latent_thoughts", "{{prefix}} {{suffix}}", "text"),
        ("textbook", "{{text}} {{audience}}", "outline"),
    ],
)
def test_every_prompted_method_sends_the_system_message(
    make_prompted, tmp_path, method, fields, answer
):
    header = f"name: mine\nversion: 1\nanswer: {answer}"
    keys = []
    for system in ("", "\nsystem: You are a teacher.", "\nsystem: You are a child."):
        file = write(tmp_path, f"---\n{header}{system}\n---\n{fields}\n")
        made = make_prompted(method, prompt_file=file)
        [request] = next(made.write(next(made.items(0, 1))))
        assert request.system == (system.partition(": ")[2] or None)
        keys.append(request.key)
    assert len(set(keys)) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Ask about {{text}}.", "no header"),
        (GOOD.replace("name: mine\n", ""), "'name' must be set"),
        (GOOD.replace("version", "verson"), "did you mean 'version'"),
        (GOOD.replace("answer: qa", "answer: poem"), "no parser for answers of the form 'poem'"),
        (GOOD.replace("{{text}}", "bees"), r"it lacks \{\{text\}\}"),
        (GOOD.replace("bout", "bout {{txt}} and"), r"nothing fills \{\{txt\}\}"),
        (GOOD.replace("name: mine", "name: [mine"), "not YAML"),
        (GOOD.replace("name: mine\nversion: 2\nanswer: qa", "mine"), "no mapping"),
    ],
)
def test_a_wrong_prompt_file_is_one_clear_message(tmp_path, content, message):
    with pytest.raises(ConfigError, match=message):
        load_prompt(write(tmp_path, content), TEXT)


def test_an_unknown_prompt_names_those_that_there_are():
    with pytest.raises(ConfigError, match=r"there is no prompt rephrase_hw\n.*rephrase_hq"):
        load_prompt("rephrase_hw", TEXT)
