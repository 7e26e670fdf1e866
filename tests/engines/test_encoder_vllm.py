"""An encoder under vLLM's pooling task gives what transformers gives."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_encoder import WORDS

from megatron_synth.config import ConfigError
from megatron_synth.corpus import Document, write_documents
from megatron_synth.engines.encoder import Frame
from megatron_synth.engines.encoder_vllm import VllmEncoder

SESSION = Path(__file__).with_name("encoder_session.py")


@pytest.mark.slow
def test_vectors_are_those_of_transformers_for_the_mean_and_for_the_last_token(tmp_path):
    texts = [" ".join(WORDS[i % 10 : i % 10 + 1 + i % 6] * (1 + i // 8)) for i in range(24)]
    write_documents(
        tmp_path / "documents.jsonl", [Document(f"d{i}", text) for i, text in enumerate(texts)]
    )
    ran = subprocess.run(
        [sys.executable, SESSION, tmp_path],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    for name, found in json.loads((tmp_path / "results.json").read_text()).items():
        assert found["largest_difference"] < 2e-3, name
        assert found["smallest_norm"] > 0.99, name
        assert found["documents"] == 24
        assert found["chunked"] > 0


def test_a_prompt_that_has_no_part_in_the_mean_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="leaves its prompt out of the mean"):
        VllmEncoder(tmp_path, Frame((1, 2), (), 2), max_tokens=16, batch_tokens=64)
