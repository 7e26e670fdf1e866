"""Which shards are an array task's, which tasks are outstanding, and what joins them."""

import multiprocessing
import os
from pathlib import Path

import pytest
import yaml
from scripted import ScriptedEngine

from megatron_synth.config import ConfigError, RunError
from megatron_synth.corpus import write_documents
from megatron_synth.experiments.config import ExperimentConfig
from megatron_synth.runs import Progress, exclusive, shared
from megatron_synth.synthesis import (
    DOCUMENTS,
    DROPPED,
    ArrayTask,
    SynthesisConfig,
    find_array_task,
    synthesize,
    synthesize_share,
)
from megatron_synth.synthesis.places import Places
from megatron_synth.synthesis.seeds import build_seeds

TASKS = 3
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def config(**ray: object) -> SynthesisConfig:
    ray = {"executor": "inline", "slurm_array": TASKS, **ray}
    return SynthesisConfig(tokens=9000, seed=1, shards=8, ray=ray)


@pytest.fixture
def slurm(monkeypatch):
    """Set what Slurm says of the array, and nothing else."""
    for name in [n for n in os.environ if n.startswith(("SLURM_", "NEMO_CURATOR_SLURM_"))]:
        monkeypatch.delenv(name)

    def say(**variables: object) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))

    return say


def test_every_shard_is_one_tasks_and_tasks_have_almost_equally_many():
    shares = [ArrayTask(index, TASKS).shards(8) for index in range(TASKS)]
    assert sorted(shard for share in shares for shard in share) == list(range(8))
    assert sorted(len(share) for share in shares) == [2, 3, 3]
    assert ArrayTask(None, TASKS).shards(8) == []


def test_outstanding_tasks_are_written_as_sbatch_takes_them(tmp_path):
    places = Places(tmp_path, tmp_path)
    task = ArrayTask(0, 10, first=1)
    assert task.outstanding(places, 20) == "1-10"
    for shard in (0, 10, 1, 4, 14, 5, 15):  # one shard of task 1's two is missing
        places.generated(shard).write_text('{"parts": 0, "answers": 0, "asked_again": 0}')
    assert task.outstanding(places, 20) == "2-4,7-10"


def test_the_task_comes_from_slurm_and_their_number_from_the_settings(slurm):
    slurm(SLURM_ARRAY_TASK_ID=2, SLURM_ARRAY_TASK_COUNT=3)
    assert find_array_task(config()) == ArrayTask(2, TASKS)
    slurm(SLURM_ARRAY_TASK_COUNT=1)  # submitted again alone
    assert find_array_task(config()) == ArrayTask(2, TASKS)
    assert find_array_task(config(slurm_array=None)) is None


def test_curators_own_variables_are_heard(slurm):
    slurm(SLURM_ARRAY_TASK_ID=3, SLURM_ARRAY_TASK_COUNT=3)
    slurm(NEMO_CURATOR_SLURM_ARRAY_MINIMUM_SHARD_INDEX=1)
    assert find_array_task(config()) == ArrayTask(2, TASKS, first=1)
    slurm(NEMO_CURATOR_SLURM_ARRAY_ENABLED=0)
    assert find_array_task(config()) == ArrayTask(None, TASKS)


def test_outside_of_an_array_no_shard_is_ones_own(slurm):
    assert find_array_task(config()) == ArrayTask(None, TASKS)


@pytest.mark.parametrize(
    ("index", "count", "message"),
    [
        (3, 3, r"settings say 3"),
        (0, 4, r"task 0 of 4 in Slurm"),
        ("x", 3, "must contain an integer"),
    ],
)
def test_an_array_that_the_settings_do_not_mean_is_refused(slurm, index, count, message):
    slurm(SLURM_ARRAY_TASK_ID=index, SLURM_ARRAY_TASK_COUNT=count)
    with pytest.raises(ConfigError, match=message):
        find_array_task(config())


def test_more_tasks_than_shards_are_refused():
    with pytest.raises(ValueError, match="set shards to as many or more"):
        config(slurm_array=9)


def test_an_experiments_step_is_one_job():
    settings = yaml.safe_load((EXAMPLES / "quickstart.yaml").read_text())
    settings["synthesis"] |= {"shards": 8, "ray": {"slurm_array": TASKS}}
    with pytest.raises(ValueError, match="a step of an experiment is one job"):
        ExperimentConfig(**settings)


def test_shares_are_joined_to_the_corpus_that_one_process_makes(
    documents, tokenizer, model_folder, tmp_path
):
    write_documents(tmp_path / "documents.jsonl.zst", documents)

    def inputs(out: str):
        folders = (tokenizer.folder, model_folder, tmp_path / out)
        return config(), tmp_path / "documents.jsonl.zst", *folders, Progress()

    def make():
        return ScriptedEngine(tokenizer)

    left = [
        synthesize_share(*inputs("array"), ArrayTask(index, TASKS), make_engine=make)
        for index in (1, None, 0, 2)
    ]
    assert left == ["0,2", "0,2", "2", ""]
    assert not (tmp_path / "array" / DOCUMENTS).exists()

    def never():
        raise AssertionError("nothing is left to ask")

    joined = synthesize(*inputs("array"), make_engine=never)
    assert (
        synthesize_share(*inputs("array"), ArrayTask(0, TASKS), make_engine=never) == ""
    )  # it is done
    whole = synthesize(*inputs("whole"), make_engine=make)
    timed = {"seconds", "tokens_per_second"}
    assert {n: v for n, v in joined.items() if n not in timed} == {
        n: v for n, v in whole.items() if n not in timed
    }
    for name in (DOCUMENTS, DROPPED):
        assert (tmp_path / "array" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_shared_store_of_sources_is_built_once_however_many_want_it(
    documents, tokenizer, tmp_path
):
    context = multiprocessing.get_context("fork")
    folder, built = tmp_path / "work" / "seeds", context.Value("i", 0)

    def read():
        built.value += 1  # the lock of the store is held here
        yield from documents

    processes = [
        context.Process(target=build_seeds, args=(read(), tokenizer, folder)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert built.value == 1
    assert build_seeds(iter(()), tokenizer, folder).name(0) == documents[0].id
    assert [path.name for path in folder.parent.iterdir()] == ["seeds"]


def test_who_shares_a_folder_keeps_out_who_wants_it_alone(tmp_path):
    lock = tmp_path / "lock"
    refused = pytest.raises(RunError, match="another process")
    with (
        shared(lock, "a folder"),
        shared(lock, "a folder", patience=0),
        refused,
        exclusive(lock, "it", patience=0),
    ):
        raise AssertionError("nobody is alone here")
    with exclusive(lock, "a folder"), refused, shared(lock, "it", patience=0):
        raise AssertionError("somebody is alone here")
