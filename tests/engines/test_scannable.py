"""A process that has imported numba can be scanned as vLLM scans it when it starts."""

import subprocess
import sys

CODE = """
import sys
import numba
from megatron_synth.engines.scannable import make_scannable

def scan():
    for module in list(sys.modules.values()):
        for value in list((getattr(module, "__dict__", None) or {}).values()):
            if hasattr(value, "__dict__"):
                vars(value).get("kernel")

try:
    scan()
except AttributeError:
    print("fails without")
make_scannable()
make_scannable()
scan()
print(numba.njit(lambda x: x + 1)(41))
"""


def test_the_scan_passes_and_numba_still_compiles():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    # The first line tells when the work-around is no longer needed.
    assert done.stdout.split("\n") == ["fails without", "42", ""]


def test_without_numba_nothing_is_done_and_nothing_is_imported():
    code = (
        "import sys; from megatron_synth.engines.scannable import make_scannable;"
        "make_scannable(); print([m for m in sys.modules if 'llvmlite' in m or 'numba' in m])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
