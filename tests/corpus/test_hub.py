import datasets
import huggingface_hub
import pytest

from megatron_synth.config import DataError
from megatron_synth.corpus import ImportConfig, Quarantine, import_corpus, read_documents
from megatron_synth.corpus.hub import read_hub


@pytest.fixture
def hub(monkeypatch):
    """A hub that has one dataset."""
    asked = []

    def load_dataset(name, config, split, streaming):
        asked.append((name, config, split, streaming))
        return [{"text": "one " * 60, "url": "u"}, {"text": None}, {"text": "three " * 60}] * 50

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *a, **k: None)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_rows_are_streamed_and_judged_like_those_of_files(hub):
    quarantine = Quarantine()
    found = list(read_hub("hf://owner/name:part@test", quarantine))
    assert hub == [("owner/name", "part", "test", True)]
    assert len(found) == 100
    assert (quarantine.good, quarantine.bad) == (100, 50)
    assert (found[1].id, found[0].metadata) == ("owner/name:3", {"url": "u"})


def test_import_takes_a_hub_name(hub, tmp_path):
    config = ImportConfig(input="hf://owner/name", quarantine_limit=0.5)
    assert import_corpus(config, tmp_path)["documents"] == 2
    assert hub == [("owner/name", None, "train", True)]
    assert len(list(read_documents(tmp_path / "documents.jsonl.zst"))) == 2


@pytest.mark.parametrize("error", [OSError("no route\nmore"), ValueError("x"), RuntimeError("y")])
def test_an_unreachable_hub_is_a_data_error_that_says_what_to_do(monkeypatch, tmp_path, error):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    with pytest.raises(DataError, match="JSONL or Parquet file instead"):
        import_corpus(ImportConfig(input="hf://owner/name"), tmp_path / "out")
    assert not (tmp_path / "out" / "documents.jsonl.zst").exists()


def test_a_machine_without_a_network_gets_one_clear_error(monkeypatch):
    # The error that the hub's own HTTP library raises, not one that a test made up.
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(DataError, match=r"cannot be read from the hub: .*refused"):
        list(read_hub("hf://owner/name", Quarantine()))


@pytest.mark.parametrize("name", ["hf://", "hf://a/b/c", "hf://a b"])
def test_a_malformed_name_is_a_data_error(name):
    with pytest.raises(DataError, match="not the name of a hub dataset"):
        list(read_hub(name, Quarantine()))


def test_a_stream_that_breaks_off_is_a_data_error(monkeypatch, hub):
    def rows(*args, **kwargs):
        yield {"text": "fine"}
        raise OSError("connection reset")

    monkeypatch.setattr(datasets, "load_dataset", rows)
    with pytest.raises(DataError, match="broke off after 1 rows: connection reset"):
        list(read_hub("hf://owner/name", Quarantine()))
