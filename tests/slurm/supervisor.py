"""Keep a Slurm cluster on one machine alive: `python supervisor.py SETTINGS.json`.

Runs as root in a mount namespace of its own (its hosts file names the virtual nodes). Starts munge,
the controller and a daemon for each node, says READY on stdout, and obeys lines on stdin: `start
NODE` starts a node's daemon again. At end of file, jobs are cancelled and everything that it or
its jobs started is ended, so that a killed test run leaves nothing.
"""

import ctypes
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

_PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    work, root, nodes = Path(settings["work"]), Path(settings["root"]), settings["nodes"]
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    subprocess.run(["mount", "--bind", str(work / "etc" / "hosts"), "/etc/hosts"], check=True)
    try:
        _start("munged", [*settings["munged"]], work)
        _wait_for(work / "run" / "munge.sock")
        _start("slurmctld", [*settings["slurmctld"]], work)
        for node in nodes:
            _start_node(node, root, work)
        _wait_until_idle(len(nodes))
        sys.stdout.write("READY\n")
        sys.stdout.flush()
        for line in sys.stdin:
            order, node = line.split()
            assert order == "start", order
            _start_node(node, root, work)
    finally:
        subprocess.run(["scancel", "--user=root"], check=False, timeout=20)
        _end_everything()


def _start(name: str, command: list[str], work: Path) -> None:
    with (work / "log" / f"{name}.out").open("ab") as log:
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _start_node(node: str, root: Path, work: Path) -> None:
    daemon = f"exec slurmd -D -N {node} -f {os.environ['SLURM_CONF']}"
    daemon += f" -d {root}/usr/sbin/slurmstepd"
    _start(node, ["unshare", "--uts", "sh", "-c", f"hostname {node}; {daemon}"], work)


def _wait_for(path: Path) -> None:
    end = time.monotonic() + 20
    while not path.exists():
        if time.monotonic() > end:
            raise SystemExit(f"{path} did not come up")
        time.sleep(0.05)


def _wait_until_idle(nodes: int) -> None:
    if not nodes:
        return
    end = time.monotonic() + 60
    while time.monotonic() < end:
        found = subprocess.run(
            ["sinfo", "-h", "-N", "-p", "batch", "-o", "%t"],
            capture_output=True,
            text=True,
            check=False,
        )
        if found.stdout.split().count("idle") == nodes:
            return
        time.sleep(0.2)
    raise SystemExit("the nodes did not come up")


def _end_everything() -> None:
    me = psutil.Process()
    end = time.monotonic() + 20
    while children := me.children():
        for child in children:
            try:
                child.kill() if time.monotonic() > end - 15 else child.terminate()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(children, timeout=2)


if __name__ == "__main__":
    main()
