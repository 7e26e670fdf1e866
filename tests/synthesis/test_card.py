"""The dataset card: Hugging Face's header, every fact, and text that cannot become markup."""

import yaml

from megatron_synth.corpus import Document
from megatron_synth.synthesis import SynthesisConfig
from megatron_synth.synthesis.card import write_card

COUNTS = {
    "documents": 1234,
    "tokens": 567_890,
    "requests": 1300,
    "output_tokens": 600_000,
    "seeds": 40,
    "dropped": {"too_short": 60, "copies_source": 6},
}
HOSTILE = "<script>alert(1)</script>\n---\n```\n# heading\n"


def document(n, text="A text."):
    return Document(
        f"d{n}", text, source_id=f"s{n}", method="sbp", generator="small@abc", prompt=None
    )


def card(tmp_path, documents, counts=COUNTS, **settings):
    path = tmp_path / "README.md"
    config = SynthesisConfig(tokens=500_000, seed=3, **settings)
    write_card(path, config, counts, documents, "documents.jsonl.zst")
    return path.read_text(encoding="utf-8")


def header(text):
    _, found, _ = text.split("---\n", 2)
    return yaml.safe_load(found)


def test_the_header_is_what_a_hub_reads(tmp_path):
    found = header(card(tmp_path, [document(1)], licence="cc-by-4.0"))
    assert found["license"] == "cc-by-4.0"
    assert found["size_categories"] == ["1K<n<10K"]
    assert found["configs"][0]["data_files"] == "documents.jsonl.zst"
    assert "synthetic" in found["tags"]


def test_generator_sampling_counts_and_every_drop_reason_are_named(tmp_path):
    text = card(tmp_path, [document(1)])
    for fact in ("small@abc", "temperature 1, top-p 0.9", "1,234", "567,890", "1,300", "| 60 |"):
        assert fact in text
    assert "| copies_source | 6 |" in text
    assert header(text)["license"] == "other"


def test_what_became_of_long_sources_is_named_where_it_happened(tmp_path):
    counts = {**COUNTS, "inputs_cut": 1007, "inputs_too_short": 0}
    text = card(tmp_path, [document(1)], counts, method="rephrase_hq", generations=4)
    assert "- Generations of each: 4" in text
    assert "- Source documents of which the beginning was used: 1,007" in text
    assert "too short" not in text.split("## Filters")[0]
    assert "temperature 0.7, top-p 0.95" in text
    assert "Generations" not in card(tmp_path, [document(1)])


def test_samples_are_indented_blocks_that_end_nothing_and_start_nothing(tmp_path):
    text = card(tmp_path, [document(1, HOSTILE), document(2, "x" * 5000)])
    _, samples = text.split("## Samples\n")
    for line in samples.split("\n"):
        assert not line or line.startswith(("    ", "From source `"))
    assert "    <script>alert(1)</script>" in samples
    assert "x" * 1200 + "…" in samples


def test_an_id_cannot_leave_its_quotes(tmp_path):
    odd = Document("d", "A text.", source_id="a`b\nc", method="sbp", generator="g")
    assert "From source `a\ufffdb\ufffdc`:" in card(tmp_path, [odd])


def test_only_the_first_documents_are_read(tmp_path):
    def endless():
        n = 0
        while True:
            yield document(n, f"text {n}")
            n += 1

    text = card(tmp_path, endless())
    assert "text 2" in text
    assert "text 3" not in text


def test_a_corpus_without_documents_has_a_card_too(tmp_path):
    counts = {**COUNTS, "documents": 0, "dropped": {}}
    text = card(tmp_path, [], counts)
    assert header(text)["size_categories"] == ["n<1K"]
    assert "Nothing was dropped." in text
