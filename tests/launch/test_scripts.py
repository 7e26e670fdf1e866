"""sbatch scripts: golden files, and what a hostile value can do in them (nothing)."""

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_synth.config import ConfigError, load_config, parse_config
from megatron_synth.experiments.config import ExperimentConfig
from megatron_synth.experiments.graph import Graph
from megatron_synth.experiments.kinds import VERSIONS
from megatron_synth.experiments.run_folder import RunFolder
from megatron_synth.experiments.steps import steps_of
from megatron_synth.launch.profile import Profile
from megatron_synth.launch.scripts import render
from megatron_synth.launch.submit import load_profile, submit_run, write_scripts

REPOSITORY = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parent / "golden"
PLAIN = {"name": "plain", "cpus_per_node": 8, "environments": {"base": {}}}


def experiment(name="sbp_200b", *overrides):
    return load_config(REPOSITORY / "examples" / f"{name}.yaml", ExperimentConfig, overrides)


def scripts_of(config, profile, run="/lustre/me/runs/sbp_200b"):
    return render(config, Graph(steps_of(config, ""), VERSIONS), profile, Path(run))


def plain(**changed):
    return parse_config({**PLAIN, **changed}, Profile, where="test")


@pytest.fixture(scope="module")
def rendered():
    profile = load_profile(REPOSITORY / "slurm" / "profiles" / "h100.yaml")
    found = scripts_of(experiment(), profile)
    return {**{f"{n}.sbatch": t for n, t in found.steps.items()}, "submit.sh": found.submit}


@pytest.mark.parametrize(
    "name", ["corpus.import.sbatch", "train.sbp.sbatch", "synthesize.sbatch", "submit.sh"]
)
def test_scripts_are_those_of_the_golden_files(name, rendered):
    if os.environ.get("MEGATRON_SYNTH_UPDATE_GOLDEN"):
        (GOLDEN / name).write_text(rendered[name])
    assert rendered[name] == (GOLDEN / name).read_text()


def test_bash_reads_every_script(rendered, tmp_path):
    for name, text in rendered.items():
        path = tmp_path / name
        path.write_text(text)
        subprocess.run(["bash", "-n", path], check=True)


def test_a_script_needs_neither_the_data_nor_slurm(tmp_path):
    run = RunFolder(tmp_path / "run")
    folder = write_scripts(experiment(), plain(), run)
    assert (folder / "train.sbp.sbatch").stat().st_mode & 0o111
    assert run.config() == experiment()
    assert not (run.path / "source.json").exists()


def test_a_folder_without_scripts_cannot_be_submitted(tmp_path):
    with pytest.raises(Exception, match="no scripts here"):
        submit_run(RunFolder(tmp_path))


def run_script(text, folder, **stubs):
    """Run a script in bash with stand-ins for Slurm's commands; gives what it printed."""
    tools = folder / "bin"
    tools.mkdir(parents=True, exist_ok=True)
    for name in ("srun", "scontrol", "scancel"):
        tool = tools / name
        tool.write_text(f"#!/bin/bash\n{stubs.get(name, 'exit 0')}\n")
        tool.chmod(0o755)
    path = folder / "step.sbatch"
    path.write_text(text)
    return subprocess.run(
        ["bash", path],
        env={
            "PATH": f"{tools}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "n1",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


one_line = st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=30)


@settings(max_examples=25)
@given(value=one_line)
@pytest.mark.parametrize(
    "hostile", ["$(touch pwned)", "`touch pwned`", "'; touch pwned; '", '"$HOME']
)
def test_a_value_reaches_the_job_as_it_is(value, hostile, tmp_path_factory):
    folder = tmp_path_factory.mktemp("script")
    run = folder / "run"
    (run / "slurm").mkdir(parents=True)
    text = scripts_of(
        experiment(), plain(variables={"HOSTILE": hostile, "ANY": value}), run=str(run)
    ).steps["corpus.import"]
    done = run_script(
        text, folder, srun=r"printf '%s\n%s\n' \"$HOSTILE\" \"$ANY\"".replace('\\"', '"')
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[1:3] == [hostile, value]
    assert not list(folder.rglob("pwned"))


class TestHowAStepEnds:
    def script(self, folder, **changed):
        (folder / "run" / "slurm").mkdir(parents=True, exist_ok=True)
        (folder / "run" / "logs").mkdir(exist_ok=True)
        found = scripts_of(experiment(), plain(**changed), run=str(folder / "run"))
        return found.steps["corpus.import"].replace("sleep 600", "sleep 0")

    requeued = 'echo "scontrol $*"'

    def test_done(self, tmp_path):
        done = run_script(self.script(tmp_path), tmp_path, scontrol=self.requeued)
        assert done.returncode == 0
        assert "scontrol" not in done.stdout

    def test_a_failure_is_tried_again_a_bounded_number_of_times(self, tmp_path):
        script = self.script(tmp_path, max_failures=2)
        ended = [
            run_script(script, tmp_path, srun="exit 9", scontrol=self.requeued) for _ in range(3)
        ]
        assert ["scontrol requeue 7" in e.stdout for e in ended] == [True, True, False]
        assert ended[-1].returncode == 9

    def test_a_success_forgets_earlier_failures(self, tmp_path):
        script = self.script(tmp_path)
        run_script(script, tmp_path, srun="exit 9", scontrol=self.requeued)
        assert (tmp_path / "run" / "slurm" / "corpus.import.failures").read_text() == "1\n"
        run_script(script, tmp_path)
        assert not (tmp_path / "run" / "slurm" / "corpus.import.failures").exists()

    @pytest.mark.parametrize(
        "srun",
        ["exit 2", """echo '{"users_fault": true}' > "$RUN/logs/$STEP.failure.json"; exit 1"""],
    )
    def test_a_users_mistake_is_not_tried_again(self, srun, tmp_path):
        done = run_script(self.script(tmp_path), tmp_path, srun=srun, scontrol=self.requeued)
        assert done.returncode == 2
        assert "scontrol requeue" not in done.stdout

    def test_restarts_have_a_limit(self, tmp_path):
        script = self.script(tmp_path, max_restarts=0)
        done = run_script(script, tmp_path, srun="exit 9", scontrol=self.requeued)
        assert "which is the limit" in done.stdout
        assert "scontrol requeue" not in done.stdout


def test_ranks_hold_whole_copies_of_the_model():
    config = experiment("sbp_200b", "training.tensor_parallel=8")
    profile = plain(gpus_per_node=4, resources={"train": {"nodes": 3}})
    with pytest.raises(ConfigError, match="12 ranks are no multiple of the 8"):
        scripts_of(config, profile)


def test_the_batch_is_shared_evenly():
    with pytest.raises(ConfigError, match="global_batch_size=2048 is not a multiple"):
        scripts_of(experiment(), plain(gpus_per_node=8, resources={"train": {"nodes": 3}}))


def test_an_entry_that_names_no_step_is_refused():
    with pytest.raises(ConfigError, match="'trian' names no step"):
        scripts_of(experiment(), plain(resources={"trian": {"nodes": 2}}))


@pytest.mark.parametrize("run", ["relative", "/a b", "/a%j", '/a"b', "/a\nb"])
def test_a_run_folder_that_sbatch_cannot_take_is_refused(run):
    with pytest.raises(ConfigError, match="run folder must be"):
        scripts_of(experiment(), plain(), run=run)


def test_a_template_of_the_users_own_replaces_ours(tmp_path):
    (tmp_path / "step.sbatch").write_text("#!/bin/bash\n# mine: {{ step }}\n")
    found = scripts_of(experiment(), plain(templates=str(tmp_path)))
    assert found.steps["tokenizer"] == "#!/bin/bash\n# mine: tokenizer\n"
    assert found.submit.startswith("#!/bin/bash\n# Submits every step")


def test_containers_are_started_by_pyxis_or_apptainer():
    image = {"container": "/images/a.sqsh", "mounts": ["/data:/data"]}
    pyxis = scripts_of(experiment(), plain(environments={"base": image})).steps["tokenizer"]
    assert "--container-image=/images/a.sqsh" in pyxis
    assert (
        "--container-mounts=/lustre/me/runs/sbp_200b:/lustre/me/runs/sbp_200b,/data:/data" in pyxis
    )
    image |= {"runtime": "apptainer"}
    apptainer = scripts_of(experiment(), plain(environments={"base": image})).steps["tokenizer"]
    assert "exec apptainer exec --nv --bind" in apptainer
    assert "--container-image" not in apptainer
