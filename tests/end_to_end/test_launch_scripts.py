"""The scripts that a person runs first, on machines that lack something: nothing is installed."""

import shutil
import subprocess
from pathlib import Path

import pytest
from toy import REPOSITORY

TOOLS = ("bash", "dirname", "cksum", "grep", "df", "awk", "cat")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What the installer reads, and a PATH with a Python and a compiler that do nothing."""
    folder = tmp_path / "clone"
    for name in ("launch_scripts", "requirements"):
        shutil.copytree(REPOSITORY / name, folder / name)
    shutil.copy(REPOSITORY / "setup.py", folder)
    (folder / "bin").mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found, tool
        (folder / "bin" / tool).symlink_to(found)
    program(folder, "python3.11", "echo 3.11")
    program(folder, "c++", "exit 0")
    return folder


def program(clone: Path, name: str, script: str) -> None:
    path = clone / "bin" / name
    path.unlink(missing_ok=True)
    path.write_text(f"#!{shutil.which('bash')}\n{script}\n")
    path.chmod(0o755)


def call(clone: Path, script: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["bash", str(clone / "launch_scripts" / script), *arguments],
        env={"PATH": str(clone / "bin"), "MEGATRON_SYNTH_PINS": "cpu", "HOME": str(clone)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def refused(clone: Path, script: str = "install.sh", *arguments: str) -> str:
    done = call(clone, script, *arguments)
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert not (clone / ".venv").exists()
    return done.stderr


@pytest.mark.parametrize("script", ["install.sh", "quickstart.sh", "run_tests.sh"])
def test_without_a_compiler_every_script_says_which_package_has_one(
    clone: Path, script: str
) -> None:
    (clone / "bin" / "c++").unlink()
    assert "no C++ compiler on PATH; install one" in refused(clone, script)


def test_another_python_is_refused_with_the_version_that_is_wanted(clone: Path) -> None:
    program(clone, "python3.11", "echo 3.9")
    assert "is Python 3.9; the pins are for 3.11" in refused(clone)
    (clone / "bin" / "python3.11").unlink()
    assert "no python3.11 on PATH" in refused(clone)
    program(clone, "python3.11", "exit 1")
    assert "does not run" in refused(clone)


def test_too_little_room_is_said_before_anything_is_installed(clone: Path) -> None:
    program(clone, "df", "echo head; echo 'disk 100 90 2000000 90% /'")
    assert "2 GB free in" in refused(clone)


def test_a_python_that_cannot_make_environments_says_which_package_can(clone: Path) -> None:
    program(clone, "python3.11", '[ "$1" = -c ] && echo 3.11')
    program(clone, "df", "echo head; echo 'disk 100 90 200000000 90% /'")
    done = call(clone, "install.sh")
    assert done.returncode == 2
    assert "apt-get install python3.11-venv" in done.stderr


def test_an_unknown_argument_of_run_tests_is_refused(clone: Path) -> None:
    assert "unknown argument 'quick'; give none, fast or full" in refused(
        clone, "run_tests.sh", "quick"
    )


def test_installing_again_with_the_same_pins_does_nothing(clone: Path) -> None:
    def checksum(*names: str) -> str:
        content = b"".join((clone / name).read_bytes() for name in names)
        done = subprocess.run(["cksum"], input=content, capture_output=True, check=True)
        return done.stdout.decode().strip()

    (clone / ".venv").mkdir()
    stamp = clone / ".venv" / ".installed"
    lines = [f"cpu {checksum('requirements/cpu.txt', 'setup.py')}"]
    stamp.write_text("\n".join(lines) + "\n")
    first = call(clone, "install.sh")
    assert (first.returncode, first.stdout, first.stderr) == (0, "", "")
    with (clone / "setup.py").open("a") as handle:
        handle.write("# changed\n")
    assert "Installing the cpu pins" in call(clone, "install.sh").stderr


def test_the_quickstart_runs_the_example_in_the_repository_with_overrides(clone: Path) -> None:
    (clone / "launch_scripts" / "install.sh").write_text("exit 0\n")
    (clone / ".venv" / "bin").mkdir(parents=True)
    (clone / ".venv" / "bin" / "megatron-synth").symlink_to(clone / "bin" / "say")
    program(clone, "say", 'printf "%s\\n" "$@"')
    done = call(clone, "quickstart.sh", "corpus.input=my corpus.jsonl", "training.steps=10")
    assert done.stdout.splitlines() == [
        *("run", str(clone / "examples" / "quickstart.yaml")),
        *("--out", str(clone / "runs" / "quickstart")),
        *("corpus.input=my corpus.jsonl", "training.steps=10"),
    ]
