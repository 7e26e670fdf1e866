"""`megatron-synth corpus …` as a user runs it."""

import json
from pathlib import Path

from toy import Cli

from megatron_synth.runs import read_manifest

TEXTS = [f"{'word ' * 60}{k} {'abcdefghij'[k] * 30}" for k in range(10)]


def corpus(folder: Path, *more: str) -> Path:
    path = folder / "in.jsonl"
    path.write_text("\n".join([*(json.dumps({"text": t}) for t in TEXTS), *more]))
    return path


def test_import_writes_a_manifest_and_a_second_time_costs_nothing(cli: Cli) -> None:
    path = corpus(cli.folder, json.dumps({"text": TEXTS[0]}))
    command = ("corpus", "import", str(path), "--out", "out", "min_characters=100", "--json")
    first = cli(*command)
    assert first.returncode == 0, first.stderr
    counts = json.loads(first.stdout)
    assert (counts["documents"], counts["duplicates"]) == (10, 1)
    manifest = read_manifest(cli.folder / "out")
    assert manifest.counts["documents"] == 10
    assert manifest.config["min_characters"] == 100
    assert set(manifest.files) == {"documents.jsonl.zst", "dropped.jsonl", "quarantine.jsonl"}
    again = cli(*command)
    assert json.loads(again.stdout) == counts
    assert "done already" in again.stderr

    other = cli("corpus", "import", str(path), "--out", "out")
    assert other.returncode == 2
    assert "holds another product" in other.stderr
    corpus(cli.folder)  # the same name, other content
    assert cli(*command).returncode == 2


def test_import_reads_a_config_file_and_overrides_win(cli: Cli) -> None:
    path = corpus(cli.folder)
    (cli.folder / "c.yaml").write_text("min_characters: 1000\nnormalise: [ftfy]\n")
    command = ("corpus", "import", str(path), "--out", "out", "--config", "c.yaml")
    none_left = cli(*command)
    assert none_left.returncode == 2
    assert "no document is left of 10 rows (10 too short)" in none_left.stderr
    done = cli(*command, "min_characters=10", "near_duplicates={}")
    assert done.returncode == 0, done.stderr
    assert read_manifest(cli.folder / "out").config["normalise"] == ["ftfy"]


def test_import_refuses_a_folder_of_other_things_and_settings_that_do_not_exist(cli: Cli) -> None:
    path = corpus(cli.folder)
    (cli.folder / "mine").mkdir()
    (cli.folder / "mine" / "thesis.txt").write_text("years of work")
    refused = cli("corpus", "import", str(path), "--out", "mine")
    assert refused.returncode == 2
    assert "thesis.txt" in refused.stderr
    wrong = cli("corpus", "import", str(path), "--out", "out", "near_duplicate={}")
    assert wrong.returncode == 2
    assert "did you mean 'near_duplicates'" in wrong.stderr
    assert not (cli.folder / "out").exists()


def test_stats_and_check_answer_in_json_and_in_words(cli: Cli) -> None:
    path = corpus(cli.folder, "{")
    stats = json.loads(cli("corpus", "stats", str(path), "--near-duplicates", "--json").stdout)
    assert (stats["documents"], stats["bad"]) == (10, 1)
    assert "documents 10; bad rows 1" in cli("corpus", "stats", str(path)).stdout
    check = cli("corpus", "check", str(path), "--json")
    assert check.returncode == 2
    assert json.loads(check.stdout)["bad_rows"][0]["first"] == [f"{path}:11"]
    assert "1 of 11 rows are no documents" in check.stderr
    assert "Traceback" not in check.stderr
    passed = cli("corpus", "check", str(path), "--limit", "0.1", "--list", "bad.jsonl")
    assert passed.returncode == 0
    assert "10 of 11 rows are documents" in passed.stdout
    assert len((cli.folder / "bad.jsonl").read_text().splitlines()) == 1
    usage = cli("corpus", "check", "--help", COLUMNS="200").stdout
    assert "INPUT" in usage
    assert "--id-column" in usage
    missing = cli("corpus", "stats", "nowhere.jsonl")
    assert (missing.returncode, missing.stdout) == (2, "")


def test_the_folder_of_an_import_is_an_input_and_no_input_is_replaced(cli: Cli) -> None:
    path = corpus(cli.folder)
    done = cli("corpus", "import", str(path), "--out", "out")
    assert done.returncode == 0, done.stderr
    stats = cli("corpus", "stats", "out", "--json")
    assert (json.loads(stats.stdout)["documents"], json.loads(stats.stdout)["bad"]) == (10, 0)
    before = path.read_bytes()
    refused = cli("corpus", "check", str(path), "--list", str(path))
    assert (refused.returncode, path.read_bytes()) == (2, before)
    (cli.folder / "out" / "manifest.json").unlink()
    before = (cli.folder / "out" / "documents.jsonl.zst").read_bytes()
    refused = cli("corpus", "import", "out", "--out", "out", "min_characters=1")
    assert refused.returncode == 2
    assert "holds other files" in refused.stderr
    assert (cli.folder / "out" / "documents.jsonl.zst").read_bytes() == before
