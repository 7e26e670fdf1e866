"""Parts, processes, kills, full disks: the product is the same, or it is not there."""

import gzip
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from megatron_synth.config import DataError
from megatron_synth.corpus import Document, write_documents
from megatron_synth.packing import PackConfig, pack, paths_of
from megatron_synth.packing.reader import IndexedReader

KILLS = 20 if os.environ.get("MEGATRON_SYNTH_TESTS") == "full" else 6
MUTATIONS = 2000 if os.environ.get("MEGATRON_SYNTH_TESTS") == "full" else 400


def _corpus(folder):
    """Four files of four kinds, some rows without an id, some bad."""
    rng = random.Random(1)
    folder.mkdir()
    rows = []
    for i in range(900):
        row = {"text": f"alpha {i} δ gamma {'beta ' * rng.randint(0, 40)}"}
        if i % 3:
            row["id"] = f"d{i}"
        if i % 5 == 0:
            row.update(source_id=f"s{i}", method="sbp")
        rows.append(json.dumps(row, ensure_ascii=False))
    for i in (7, 450, 777):
        rows[i] = '{"text": 3}'
    rows.insert(100, "")
    (folder / "a.jsonl").write_text("\n".join(rows[:400]))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(rows[400:600]).encode()))
    (folder / "d.jsonl").write_text("\n".join(rows[600:]) + "\n")
    write_documents(folder / "c.parquet", (Document(f"p{i}", f"beta {i}") for i in range(50)))
    return folder


def _files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}


def test_neither_parts_nor_processes_change_the_product(tmp_path, tokenizer):
    source = _corpus(tmp_path / "in")
    whole = pack(source, tokenizer, tmp_path / "whole" / "c")
    expected = _files(tmp_path / "whole")
    assert whole.quarantined == 3
    for i, (workers, part_bytes) in enumerate([(1, 2000), (2, 5000), (2, 1)]):
        out = tmp_path / str(i)
        packed = pack(source, tokenizer, out / "c", workers=workers, part_bytes=part_bytes)
        assert _files(out) == expected
        assert packed == whole
    noted = [json.loads(x) for x in (tmp_path / "whole" / "c.quarantine.jsonl").open()]
    assert [(Path(n["file"]).name, n["line"]) for n in noted] == [
        ("a.jsonl", 8),
        ("b.jsonl.gz", 52),
        ("d.jsonl", 179),
    ]
    ids = pq.read_table(paths_of(tmp_path / "whole" / "c").provenance).column("id").to_pylist()
    assert ids[:3] == ["a:1", "d1", "d2"]
    assert (ids[98], ids[101]) == ("a:100", "a:104")  # line 8 is bad, line 101 is blank


def test_many_datasets_hold_together_what_one_holds(tmp_path, tokenizer):
    source = _corpus(tmp_path / "in")
    pack(source, tokenizer, tmp_path / "one" / "c")
    packed = pack(
        source,
        tokenizer,
        tmp_path / "many" / "c",
        config=PackConfig(output_mb=1),
        part_bytes=5000,
    )
    assert list(packed.infos) == ["c-00000_text_document"]  # under a megabyte of input
    big = tmp_path / "big.jsonl"
    write_documents(big, (Document(str(i), "alpha beta " * 400) for i in range(700)))
    pack(big, tokenizer, tmp_path / "one" / "b")
    packed = pack(
        big, tokenizer, tmp_path / "many" / "b", config=PackConfig(output_mb=1), part_bytes=1 << 18
    )
    assert list(packed.infos) == [f"b-0000{i}_text_document" for i in range(3)]
    one = IndexedReader(tmp_path / "one" / "b")
    many = [IndexedReader(tmp_path / "many" / name) for name in packed.infos]
    assert sum(reader.documents for reader in many) == one.documents == 700
    joined = b"".join((tmp_path / "many" / f"{name}.bin").read_bytes() for name in packed.infos)
    assert joined == paths_of(tmp_path / "one" / "b").bin.read_bytes()
    tables = [pq.read_table(paths_of(tmp_path / "many" / name).provenance) for name in packed.infos]
    ids = [name for table in tables for name in table.column("id").to_pylist()]
    assert ids == [str(i) for i in range(700)]


def test_too_many_bad_rows_fail_and_a_higher_limit_goes_on_with_what_is_packed(
    tmp_path, tokenizer, caplog
):
    (tmp_path / "in.jsonl").write_text('{"text": "alpha"}\n{"txt": "beta"}\n' * 20)
    with pytest.raises(DataError, match="20 of 40 rows are no documents") as error:
        pack(tmp_path / "in.jsonl", tokenizer, tmp_path / "c", part_bytes=100)
    assert "quarantine_limit" in error.value.fix
    assert len((tmp_path / "c.quarantine.jsonl").read_text().splitlines()) == 20
    assert not list(tmp_path.glob("c_text_document*"))
    caplog.set_level("INFO")
    config = PackConfig(quarantine_limit=0.5)
    packed = pack(tmp_path / "in.jsonl", tokenizer, tmp_path / "c", config=config, part_bytes=100)
    assert (packed.info.documents, packed.quarantined) == (20, 20)
    assert "parts are packed" in caplog.text


def test_a_changed_input_is_packed_anew(tmp_path, tokenizer):
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "alpha"}\n{"txt": "beta"}\n')
    with pytest.raises(DataError):
        pack(path, tokenizer, tmp_path / "c")
    path.write_text('{"text": "gamma"}\n{"text": "beta"}\n')
    assert pack(path, tokenizer, tmp_path / "c").info.documents == 2
    assert not (tmp_path / "c.quarantine.jsonl").exists()


def test_a_part_that_was_damaged_since_is_packed_anew(tmp_path, tokenizer):
    source = _corpus(tmp_path / "in")
    pack(source, tokenizer, tmp_path / "whole" / "c")
    with pytest.raises(DataError):
        config = PackConfig(quarantine_limit=0)
        pack(source, tokenizer, tmp_path / "out" / "c", config=config, part_bytes=2000)
    work = tmp_path / "out" / ".c.pack"
    parts = sorted(work.glob("*.bin"))
    parts[1].write_bytes(parts[1].read_bytes()[:-2])
    parts[3].write_bytes(b"\1" + parts[3].read_bytes()[1:])
    sorted(work.glob("*.idx"))[5].write_bytes(b"")
    sorted(work.glob("*.provenance"))[6].write_bytes(b"")
    sorted(work.glob("*.json"))[7].write_bytes(b"")
    pack(source, tokenizer, tmp_path / "out" / "c", part_bytes=2000)
    assert _files(tmp_path / "out") == _files(tmp_path / "whole")


def test_what_an_encoder_made_that_is_not_trusted_is_made_again(tmp_path, tokenizer, caplog):
    (tmp_path / "in.jsonl").write_text('{"text": "alpha"}\n{"txt": "beta"}\n' * 20)
    for encoder in ("gigatoken", "gigatoken", "tokenizer", "tokenizer"):
        with pytest.raises(DataError, match="20 of 40"):
            pack(tmp_path / "in.jsonl", tokenizer, tmp_path / "c", encoder=encoder)
    records = [json.loads(p.read_text()) for p in tmp_path.glob(".c.pack/part-*.json")]
    assert [record["fast"] for record in records] == [False]


def test_packing_ends_when_the_bad_rows_are_too_many_whatever_comes(tmp_path, tokenizer):
    (tmp_path / "in.jsonl").write_text('{"txt": "alpha"}\n' * 30_000)
    with pytest.raises(DataError, match=r"1\d,\d\d\d of 1\d,\d\d\d rows are no documents"):
        pack(tmp_path / "in.jsonl", tokenizer, tmp_path / "c", part_bytes=200_000)
    (tmp_path / "in.jsonl").write_text('{"txt": "alpha"}\n' * 9 + '{"text": "alpha"}\n' * 991)
    packed = pack(tmp_path / "in.jsonl", tokenizer, tmp_path / "c", part_bytes=50)
    assert (packed.info.documents, packed.quarantined) == (991, 9)


@pytest.mark.parametrize(
    "settings",
    [
        {"keys": ("text", "source_id")},
        {"keys": ("method",)},
        {"id_column": "source_id"},
        {"keys": ('a"b',), "provenance": False},
    ],
)
def test_columns_with_awkward_names_are_packed(tmp_path, tokenizer, settings):
    row = {"text": "alpha", "source_id": "beta", "method": "gamma", 'a"b': "delta", "id": "x"}
    (tmp_path / "in.jsonl").write_text((json.dumps(row) + "\n") * 3)
    config = PackConfig(**settings)
    packed = pack(tmp_path / "in.jsonl", tokenizer, tmp_path / "c", config=config)
    for key in config.keys:
        info = packed.infos[f"c_{key}_document"]
        assert (info.documents, info.text_bytes) == (3, 3 * len(row[key]))
    if config.provenance:
        stem = tmp_path / f"c_{config.keys[0]}_document.provenance.parquet"
        given = pq.read_table(stem).to_pylist()[0]
        assert given["id"] == row[config.id_column]
        used = (*config.keys, config.id_column)
        assert given["source_id"] == (None if "source_id" in used else "beta")


def test_leftovers_of_a_killed_try_with_other_settings_are_removed(tmp_path, tokenizer):
    (tmp_path / "in.jsonl").write_text('{"text": "alpha"}\n{"txt": "beta"}\n')
    with pytest.raises(DataError):
        pack(tmp_path / "in.jsonl", tokenizer, tmp_path / "c", config=PackConfig(output_mb=1))
    left = tmp_path / ".c-00000_text_document.tmp.bin"
    left.write_bytes(b"as a kill leaves it")
    (tmp_path / ".c.pack" / ".part-000000.7.tmp.0.bin").write_bytes(b"as a kill leaves it")
    other = tmp_path / ".c-other_text_document.tmp.bin"
    other.write_bytes(b"of another packing")
    config = PackConfig(quarantine_limit=0.5, end_of_text=False)
    pack(tmp_path / "in.jsonl", tokenizer, tmp_path / "c", config=config)
    assert [p.name for p in tmp_path.glob(".*")] == [other.name]


def test_names_that_are_no_unicode_are_read_and_shown(tmp_path, tokenizer):
    (tmp_path / "in").mkdir()
    for i in range(2):
        path = tmp_path / "in" / os.fsdecode(b"%d\xff.jsonl" % i)
        path.write_text('{"text": "alpha"}\n{"txt": 3}\n')
    config = PackConfig(quarantine_limit=0.5)
    packed = pack(tmp_path / "in", tokenizer, tmp_path / "c", config=config, workers=2)
    assert packed.info.documents == 2
    noted = [json.loads(line)["file"] for line in (tmp_path / "c.quarantine.jsonl").open()]
    assert [name.rsplit("/", 1)[1] for name in noted] == ["0\\xff.jsonl", "1\\xff.jsonl"]
    ids = pq.read_table(paths_of(tmp_path / "c").provenance).column("id").to_pylist()
    assert ids == ["0\\xff:1", "1\\xff:1"]


def test_a_folder_can_be_packed_into_itself_again_and_again(tmp_path, tokenizer):
    (tmp_path / "in.jsonl").write_text('{"text": "alpha"}\n{"text": "beta"}\n{"txt": 3}\n')
    config = PackConfig(quarantine_limit=0.5)
    first = pack(tmp_path, tokenizer, tmp_path / "c", config=config)
    files = _files(tmp_path)
    assert pack(tmp_path, tokenizer, tmp_path / "c", config=config) == first
    assert _files(tmp_path) == files


SCRIPT = """
import sys
from pathlib import Path
from megatron_synth.packing import pack
from megatron_synth.tokens import Tokenizer
tokenizer = Tokenizer.load(sys.argv[2])
print("go", flush=True)
pack(sys.argv[1], tokenizer, Path(sys.argv[3]), workers=2, part_bytes=1 << 18)
"""


@pytest.mark.slow
def test_killed_at_random_points_and_run_again_gives_the_identical_files(tmp_path, tokenizer):
    source = tmp_path / "in.jsonl"
    rng = random.Random(4)
    words = [f"w{i}" for i in range(3000)]
    documents = (Document(str(i), " ".join(rng.choices(words, k=400))) for i in range(6000))
    write_documents(source, documents)
    command = [sys.executable, "-c", SCRIPT, str(source), str(tokenizer.folder)]

    def begin(folder):
        process = subprocess.Popen([*command, str(folder / "c")], stdout=subprocess.PIPE)
        process.stdout.readline()  # packing begins
        return process, time.monotonic()

    def run_whole(folder):
        with begin(folder)[0] as process:
            pass
        assert process.returncode == 0
        return _files(folder)

    process, started = begin(tmp_path / "whole")
    process.communicate()
    seconds = time.monotonic() - started
    whole = _files(tmp_path / "whole")
    assert process.returncode == 0 and len(whole) == 4
    killed = resumed = tries = 0
    outs = [tmp_path / f"out{i}" for i in range(3)]
    while killed < KILLS:
        out, tries = outs[tries % 3], tries + 1
        assert tries < 10 * KILLS, f"{killed} of {tries} kills came before the end"
        process, _ = begin(out)
        with process:
            time.sleep(rng.uniform(0, seconds))
            os.kill(process.pid, signal.SIGKILL)
        killed += process.returncode == -signal.SIGKILL
        found = _files(out) if out.is_dir() else {}
        assert all(whole[name] == content for name, content in found.items())
        resumed += any(out.glob(".c.pack/part-*.json"))
    assert resumed >= 1
    for out in outs:
        assert run_whole(out) == whole
        assert not [p for p in out.iterdir() if p.name.startswith(".")]


def test_what_a_kill_left_of_the_last_file_is_removed(tmp_path, tokenizer):
    write_documents(tmp_path / "in.jsonl", (Document(str(i), "alpha beta") for i in range(9)))
    left = tmp_path / ".c_text_document.json.4711.tmp"
    left.write_text("{")
    pack(tmp_path / "in.jsonl", tokenizer, tmp_path / "c")
    assert not left.exists()


def _mutate(lines, rng):
    """Damage some lines: change, cut or insert bytes, or put other rows in their place."""
    for _ in range(rng.randint(1, 4)):
        i = rng.randrange(len(lines))
        line = bytearray(lines[i]) or bytearray(b"{")
        place = rng.randrange(len(line))
        byte = bytes([rng.randrange(256)])
        lines[i] = rng.choice(
            [
                bytes(line[:place] + byte + line[place + 1 :]),
                bytes(line[:place]),
                bytes(line[:place] + byte + line[place:]),
                line.replace(b"text ", rng.choice([b"\\u0000", b"\\ud800", b"\\ud83d\\ude00"])),
                rng.choice([b"", b"[]", b"{}", b'{"text": null}', b"\xff"]),
            ]
        )
    return b"\n".join(lines)


def _judge(data):
    """Texts of the good lines and numbers of the bad ones, by Python's own json."""
    good, bad = [], []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line or line.isspace():
            continue
        try:
            text = json.loads(line.decode("utf-8-sig"))["text"]
            if b"\0" in text.encode():
                raise ValueError("NUL")
            good.append(text)
        except (ValueError, TypeError, KeyError, AttributeError):
            bad.append(number)
    return good, bad


@pytest.mark.slow
def test_every_good_row_is_packed_and_every_bad_row_is_quarantined(tmp_path, tokenizer):
    rng = random.Random(9)
    rows = [{"id": f"d{i}", "text": f"text {i} é 🦊 " * rng.randint(1, 9)} for i in range(12)]
    path = tmp_path / "in.jsonl"
    bad_rows = 0
    for trial in range(MUTATIONS):
        lines = [json.dumps(row, ensure_ascii=rng.random() < 0.5).encode() for row in rows]
        data = _mutate(lines, rng)
        path.write_bytes(data)
        good, bad = _judge(data)
        config = PackConfig(quarantine_limit=1)
        part_bytes = rng.randint(1, 2000)
        packed = pack(path, tokenizer, tmp_path / "c", config=config, part_bytes=part_bytes)
        reader = IndexedReader(tmp_path / "c")
        assert reader.documents == packed.info.documents == len(good)
        found = [tokenizer.decode(reader.document(i)[:-1].tolist()) for i in range(len(good))]
        assert found == good, trial
        listed = tmp_path / "c.quarantine.jsonl"
        noted = [json.loads(x)["line"] for x in listed.open()] if bad else []
        assert noted == bad, trial
        assert listed.exists() == bool(bad)
        bad_rows += len(bad)
    assert bad_rows > MUTATIONS


def _pack_with_file_limit(folder, tokenizer, limit):
    def limit_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-c", SCRIPT, str(folder / "in.jsonl"), str(tokenizer.folder)]
    return subprocess.run(
        [*command, str(folder / "c")],
        preexec_fn=limit_files,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("rows", "text", "limit"),
    [
        (900, "alpha {} beta " * 100, 20_000),  # in a part
        (900, "alpha {} beta " * 100, 700_000),  # in the joined file
        (300, "a", 1000),  # where files are closed: no buffer was full before
    ],
)
def test_a_full_disk_is_one_clear_error_and_the_next_try_goes_on(
    tmp_path, tokenizer, rows, text, limit
):
    documents = (Document(str(i), text.format(*[i] * 100)) for i in range(rows))
    write_documents(tmp_path / "in.jsonl", documents)
    ran = _pack_with_file_limit(tmp_path, tokenizer, limit)
    assert ran.returncode == 1
    assert "cannot write: file too large" in ran.stderr
    assert ran.stderr.splitlines()[-2].startswith("megatron_synth.config.errors.RunError")
    assert not list(tmp_path.glob("c_text_document*"))
    packed = pack(tmp_path / "in.jsonl", tokenizer, tmp_path / "c", part_bytes=1 << 18)
    assert packed.info.documents == rows
    assert not list(tmp_path.glob(".c*"))


def test_a_second_packing_of_the_same_prefix_is_refused(tmp_path, tokenizer, monkeypatch):
    from megatron_synth.config import RunError
    from megatron_synth.runs import store

    (tmp_path / "in.jsonl").write_text('{"text": "alpha"}\n')
    monkeypatch.setattr(store.exclusive.__wrapped__, "__defaults__", (0.2, False))
    with (
        store.exclusive(tmp_path / ".c.lock", "held"),
        pytest.raises(RunError, match="another process"),
    ):
        pack(tmp_path / "in.jsonl", tokenizer, tmp_path / "c")


def _pool():
    """Our child processes that pack; others may be here, such as trackers, or the ended."""
    return [c for c in psutil.Process().children() if "packing.worker" in _command(c)]


def _command(process):
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


@pytest.mark.parametrize("whom", ["the first", "all"])
def test_a_dead_worker_is_one_clear_error(tmp_path, tokenizer, whom, monkeypatch):
    from megatron_synth.config import RunError
    from megatron_synth.packing import assembly

    words = "alpha beta gamma " * 400
    write_documents(tmp_path / "in.jsonl", (Document(str(i), f"{words}{i}") for i in range(9000)))
    killed = []

    def kill(shown, size, tokens):
        if not killed:
            (first,) = _pool()
            killed.extend(first.children()[:1] if whom == "the first" else [*first.children()])
            for process in [*killed, first][: 1 if whom == "the first" else None]:
                process.kill()

    monkeypatch.setattr(assembly._Shown, "read", kill)
    with pytest.raises(RunError, match="a packing process died"):
        pack(tmp_path / "in.jsonl", tokenizer, tmp_path / "c", workers=2, part_bytes=1 << 24)
    assert killed
    assert not _pool()
    assert not list(tmp_path.glob("c_text_document*"))


def test_a_killed_parent_leaves_no_process(tmp_path, tokenizer):
    words = "alpha beta gamma " * 400
    write_documents(tmp_path / "in.jsonl", (Document(str(i), f"{words}{i}") for i in range(9000)))
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "in.jsonl"), str(tokenizer.folder)]
    with subprocess.Popen([*command, str(tmp_path / "c")], stdout=subprocess.PIPE) as process:
        give_up = time.monotonic() + 60
        while not list(tmp_path.glob(".c.pack/part-*.json")):
            assert time.monotonic() < give_up
            time.sleep(0.01)
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    assert len(children) == 3
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]
