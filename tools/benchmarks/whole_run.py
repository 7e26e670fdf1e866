"""Time and peak memory of a whole experiment, every process of its tree counted.

    python tools/benchmarks/whole_run.py examples/quickstart.yaml --out /tmp/run [KEY=VALUE …]

Memory is the proportional set size (PSS) of the launcher and all of its descendants, sampled twice
a second: pages that processes share count once. Prints one table, by step and in all.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil


def tree_pss(root: int) -> int:
    """PSS of process `root` and its descendants, bytes."""
    total = 0
    try:
        family = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in family:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def main() -> int:
    """Run, sample, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--out", required=True, type=Path)
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "megatron_synth.cli", "run", arguments.experiment]
    command += ["--out", str(arguments.out), *arguments.overrides]
    started = time.monotonic()
    process = subprocess.Popen(command)
    peak = [0]

    def sample() -> None:
        while process.poll() is None:
            peak[0] = max(peak[0], tree_pss(process.pid))
            time.sleep(0.5)

    sampler = threading.Thread(target=sample)
    sampler.start()
    status = process.wait()
    sampler.join()
    elapsed = time.monotonic() - started
    if status != 0:
        return status
    manifests = [
        json.loads(path.read_text()) for path in arguments.out.glob("steps/*/manifest.json")
    ]
    for made in sorted(manifests, key=lambda m: m["created"]):
        speed = made["counts"].get("tokens_per_second")
        shown = f"{speed:10,.0f} tokens/s" if speed else ""
        print(f"{made['step']:22}{made['seconds']:8.1f} s  {shown}".rstrip())
    print(f"{'whole run':22}{elapsed:8.1f} s  peak memory of all processes {peak[0] / 1e9:.2f} GB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
