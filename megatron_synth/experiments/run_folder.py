"""One run on disk.

RUN/experiment.yaml     the config, with all overrides and defaults written out
RUN/source.json         fingerprint of the corpus's input when the run was started
RUN/steps/NAME-KEY/     finished products (NAME-KEY.partial: work in progress)
RUN/logs/NAME.log       what each step said
RUN/report.html         the page
"""

import json
from contextlib import AbstractContextManager
from pathlib import Path

import yaml

from megatron_synth.config import DataError, parse_config, read_yaml
from megatron_synth.corpus.importing import INSTALLED
from megatron_synth.experiments.config import ExperimentConfig
from megatron_synth.experiments.graph import Graph
from megatron_synth.experiments.kinds import VERSIONS
from megatron_synth.experiments.source import fingerprint, import_fingerprint
from megatron_synth.experiments.steps import steps_of
from megatron_synth.runs import Store, atomic_write, disk_errors, exclusive, write_json

_CONFIG = "experiment.yaml"
_SOURCE = "source.json"


class RunFolder:
    """A run: its config, its graph, its store and its logs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = Store(path / "steps")
        self.logs = path / "logs"
        self.report = path / "report.html"

    def write_config(self, config: ExperimentConfig) -> None:
        """Keep the config that this run is made from, and which input it reads.

        Raises:
            DataError: The input is not there.
            RunError: The folder cannot be written.
        """
        self.write_source(config)
        self.write_experiment(config)

    def write_source(self, config: ExperimentConfig) -> None:
        """Keep which input the run reads, and its content as it is now.

        Raises:
            DataError: The input is not there.
            RunError: The folder cannot be written.
        """
        name, known = config.corpus.input, self._known_source()
        # A package that is installed after the start must not undo what was done.
        keep = name == INSTALLED and known is not None and known["input"] == INSTALLED
        content = known["content"] if known and keep else fingerprint(name)
        corpus = import_fingerprint(config.corpus, content)
        source = {"input": name, "content": content, "corpus": corpus}
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / _SOURCE, source)

    def write_experiment(self, config: ExperimentConfig) -> None:
        """Keep the config; its input may be elsewhere.

        Raises:
            RunError: The folder cannot be written.
        """
        with atomic_write(self.path / _CONFIG) as handle:
            yaml.safe_dump(
                config.model_dump(mode="json"), handle, sort_keys=False, allow_unicode=True
            )

    def config(self) -> ExperimentConfig:
        """The config that this run is made from.

        Raises:
            DataError: This is no run folder.
        """
        path = self.path / _CONFIG
        if not path.is_file():
            raise DataError(
                "not a run folder: it has no experiment.yaml",
                where=self.path,
                fix="Give the folder that `megatron-synth run` printed, such as runs/quickstart.",
            )
        return parse_config(read_yaml(path), ExperimentConfig, where=str(path))

    def graph(self) -> Graph:
        """The steps of this run."""
        config = self.config()
        source = self._known_source()
        if source is None:
            raise DataError(
                "source.json is missing or damaged",
                where=self.path,
                fix="Run the experiment again: finished steps are kept.",
            )
        return Graph(steps_of(config, source["corpus"]), VERSIONS)

    def lock(self) -> AbstractContextManager[None]:
        """Hold the folder for one launcher.

        Raises:
            RunError: Another launcher works on this run.
        """
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        return exclusive(self.path / ".lock", str(self.path), patience=2.0)

    def _known_source(self) -> dict[str, str] | None:
        try:
            content = json.loads((self.path / _SOURCE).read_text(encoding="utf-8"))
            return {name: str(content[name]) for name in ("input", "content", "corpus")}
        except (OSError, ValueError, KeyError):
            return None
