"""Compile a loop with numba; whoever imports this pays numba's start of about half a second."""

from collections.abc import Callable
from typing import Any

import numba

from megatron_synth.runs.logs import get_logger


def compiled(function: Callable[..., Any]) -> Any:
    """Compile; the result is kept on disk where there is a place that can be written to."""
    try:
        return numba.njit(function, nogil=True, cache=True)
    except RuntimeError as error:  # numba: no locator available
        get_logger(__name__).info("compiled at every start: %s", error)
        return numba.njit(function, nogil=True)
