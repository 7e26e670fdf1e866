"""Let vLLM start in a process that has imported numba."""

import sys
from typing import Any


def make_scannable() -> None:
    """Give llvmlite's library an ordinary `__dict__`.

    When it starts, vLLM looks into `vars()` of every value of every module for kernels to replace.
    llvmlite's library, which numba loads, takes any name for one of its functions, `__dict__` as
    well, and the look ends vLLM with an AttributeError. Shingles are hashed by numba, so that a
    step that goes on from its log has it before its engine.
    """
    ffi: Any = sys.modules.get("llvmlite.binding.ffi")
    if ffi is not None and not isinstance(getattr(ffi.lib, "__dict__", {}), dict):
        ffi.lib = _Library(ffi.lib)  # its users look it up in the module each time


class _Library:
    """The same library behind an object as others are."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)
