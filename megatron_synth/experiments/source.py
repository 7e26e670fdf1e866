"""Which content does an input name stand for now? Other content must give other products."""

import importlib.metadata
import platform
from pathlib import Path

from megatron_synth.corpus import ImportConfig, list_files
from megatron_synth.corpus.hub import SCHEME
from megatron_synth.corpus.importing import INSTALLED
from megatron_synth.runs import hash_json
from megatron_synth.tokens import Tokenizer


def fingerprint(source: str) -> str:
    """A hash that changes when the input does; cheap, so it looks at no content.

    Files: name, size and time of change of each. Installed documentation: names and versions of
    all packages. A hub dataset: its name, since its revision is part of it.

    Raises:
        DataError: No such file.
    """
    if source == INSTALLED:
        packages = sorted(
            (d.metadata["Name"] or "", d.version) for d in importlib.metadata.distributions()
        )
        return hash_json({"python": platform.python_version(), "packages": packages})
    if source.startswith(SCHEME):
        return hash_json({"hub": source})
    files: list[list[object]] = []
    for path in list_files(source):
        found = Path(path).stat()
        files.append([str(Path(path).resolve()), found.st_size, found.st_mtime_ns])
    return hash_json({"files": files})


def import_fingerprint(config: ImportConfig, content: str | None = None) -> str:
    """A hash that changes when anything changes that an import reads.

    Args:
        config: Names the input, benchmark queries, a tokenizer.
        content: Fingerprint of the input, where it is known.

    Raises:
        DataError: Something that it reads is not there.
    """
    queries = config.decontaminate.queries if config.decontaminate else ()
    tokenizer = None if config.tokenizer is None else Tokenizer.load(config.tokenizer).fingerprint
    return hash_json(
        {
            "input": content or fingerprint(config.input),
            "queries": [fingerprint(source) for source in queries],
            "tokenizer": tokenizer,
        }
    )
