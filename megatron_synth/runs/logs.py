"""Logging: library code logs under `megatron_synth`, a process decides where that goes."""

import logging
import sys
from pathlib import Path


def get_logger(name: str) -> logging.Logger:
    """The logger of a module; pass `__name__`."""
    return logging.getLogger(name)


def log_to(path: Path | None = None, level: int = logging.INFO) -> None:
    """Send the package's log to stderr, or append it to `path`; replaces an earlier choice."""
    logger = logging.getLogger("megatron_synth")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    handler = (
        logging.StreamHandler(sys.stderr)
        if path is None
        else logging.FileHandler(path, encoding="utf-8")
    )
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(name)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
