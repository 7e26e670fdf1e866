"""Self-distillation: unconditional samples; the prompt is the beginning of a document alone."""

from itertools import islice

import pytest
from scripted import write_with

from megatron_synth.config import ConfigError
from megatron_synth.corpus import Document, read_documents
from megatron_synth.engines import Completion
from megatron_synth.runs import Progress
from megatron_synth.synthesis import DOCUMENTS, SynthesisConfig, synthesize
from megatron_synth.synthesis.methods.self_distill import SelfDistill

CONFIG = SynthesisConfig(method="self_distill", tokens=3000, ray={"executor": "inline"})


@pytest.fixture
def method(tokenizer):
    return SelfDistill(CONFIG, tokenizer, 512, "generator@0")


def test_the_prompt_is_the_token_after_which_documents_begin(method, tokenizer):
    assert tokenizer.bos_id is None
    for item in islice(method.items(0, 1), 5):
        _, [[request]] = write_with(method, item, lambda request: "text")
        assert request.prompt == [tokenizer.eos_id]
        assert request.sampling.stop_ids == (tokenizer.eos_id,)
        assert request.sampling.max_tokens == 511
        assert (request.sampling.temperature, request.sampling.top_p) == (1.0, 1.0)


def test_a_tokenizer_with_a_bos_begins_with_it(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "bos_id", 7)
    method = SelfDistill(CONFIG, tokenizer, 512, "generator@0")
    _, [[request]] = write_with(method, next(method.items(0, 1)), lambda request: "text")
    assert request.prompt == [7]


def test_samples_differ_by_their_seeds_and_shards_share_them_out(method):
    whole = list(islice(method.items(0, 1), 9000))
    assert len({item.seed for item in whole}) == 9000
    for shards in (2, 5):
        parts = [list(islice(method.items(k, shards), 9000)) for k in range(shards)]
        joined = sorted((i for part in parts for i in part), key=lambda i: i.index)
        assert joined[:9000] == whole


def test_a_document_has_its_provenance_and_no_source(method, tokenizer):
    item = list(islice(method.items(0, 1), 3))[2]
    ids = tuple(tokenizer.encode("a text"))
    document, [[request]] = write_with(
        method, item, lambda r: Completion(r.key, token_ids=ids, prompt_tokens=1, output_tokens=4)
    )
    assert document == Document(
        id="self_distill-0-2",
        text="a text",
        method="self_distill",
        generation=2,
        round=0,
        generator="generator@0",
        seed=request.sampling.seed,
        sampling={"temperature": 1.0, "top_p": 1.0, "max_tokens": 511},
        finish_reason="stop",
        token_counts={"prompt": 1, "output": 4, "text": len(ids)},
        metadata={"request": 2},
    )
    assert method.source_text(item) == ""


def test_the_whole_step_needs_no_documents_and_takes_none(
    engine, tokenizer, model_folder, tmp_path, documents
):
    def run(source):
        return synthesize(
            CONFIG,
            source,
            tokenizer.folder,
            model_folder,
            tmp_path / "out",
            Progress(),
            make_engine=lambda: engine,
        )

    with pytest.raises(ConfigError, match="takes no documents"):
        run(documents)
    counts = run(None)
    assert counts["tokens"] >= 3000
    assert counts["seeds"] == 0
    kept = list(read_documents(tmp_path / "out" / DOCUMENTS))
    assert len(kept) == counts["documents"]
    assert all(document.source_id is None for document in kept)
