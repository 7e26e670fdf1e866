"""A real Slurm cluster on this machine, for tests: unpacked, not installed.

Slurm comes from Debian's or Ubuntu's packages, fetched once a test run and unpacked into a
private folder. Nodes are virtual: any number of CPUs and GPUs by declaration.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

_PACKAGES = (
    *("libhwloc15", "liblua5.1-0", "libmunge2", "munge"),
    *("slurm-wlm-basic-plugins", "slurm-client", "slurmctld", "slurmd"),
)


def unpack_slurm(folder: Path) -> Path:
    """Slurm's programs under `folder`; skips, with the reason, where they cannot be had."""
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("a Slurm cluster in a test needs root on Linux (namespaces, munge)")
    for tool in ("apt-get", "dpkg-deb", "unshare", "mount"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool}: Slurm is unpacked from Debian's packages")
    debs, root = folder / "debs", folder / "root"
    debs.mkdir(parents=True)
    found = subprocess.run(
        ["apt-get", "download", *_PACKAGES], cwd=debs, capture_output=True, text=True, check=False
    )
    if found.returncode:
        # Package lists may be absent on a bare machine; they go into a folder of ours.
        pytest.skip(f"Slurm's packages cannot be had: {found.stderr.strip().splitlines()[-1]}")
    for deb in sorted(debs.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", deb, root], check=True)
    for daemon in ("slurmctld", "slurmd", "slurmstepd"):
        link = root / "usr" / "sbin" / daemon  # under its Debian name it drops every Gres=
        link.unlink(missing_ok=True)
        link.symlink_to(f"{daemon}-wlm")
    return root


@dataclass
class Cluster:
    """A running cluster: `environment` is what its commands and jobs need."""

    work: Path
    environment: dict[str, str]
    supervisor: subprocess.Popen[str]

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command of Slurm's; its output."""
        found = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False
        )
        if check and found.returncode:
            raise AssertionError(f"{command}: {found.stderr or found.stdout}")
        return found.stdout

    def state(self, job: int) -> str:
        """A job's state, such as PENDING."""
        return self.run("squeue", "-h", "-a", "-t", "all", "-j", str(job), "-o", "%T").strip()

    def wait(self, job: int, *states: str, seconds: float = 120) -> str:
        """Wait until `job` is in one of `states`."""
        end = time.monotonic() + seconds
        while (state := self.state(job)) not in states:
            if time.monotonic() > end:
                raise AssertionError(f"job {job} is {state} after {seconds} s, not {states}")
            time.sleep(0.2)
        return state

    def kill_node(self, node: str) -> None:
        """`kill -9` of a node's daemon and of what runs on it.

        The daemons go first: one that outlived its tasks would report how they ended, which a lost
        node does not.
        """
        daemons = [psutil.Process(int((self.work / "run" / f"{node}.pid").read_text()))]
        tasks = []
        for process in psutil.process_iter(["cmdline", "environ"]):
            if " ".join(process.info["cmdline"] or []).startswith("slurmstepd: ["):
                if self._steps_node(process) == node:
                    daemons.append(process)
            elif (process.info["environ"] or {}).get("SLURMD_NODENAME") == node:
                tasks.append(process)
        for process in [*daemons, *tasks]:
            with contextlib.suppress(psutil.Error):
                process.kill()

    def _steps_node(self, step: psutil.Process) -> str | None:
        """The node of a slurmstepd, which only its tasks know."""
        for task in step.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if name := task.environ().get("SLURMD_NODENAME"):
                    return name
        return None

    def start_node(self, node: str) -> None:
        """Start a node's daemon again."""
        assert self.supervisor.stdin is not None
        self.supervisor.stdin.write(f"start {node}\n")
        self.supervisor.stdin.flush()


@contextlib.contextmanager
def slurm_cluster(
    root: Path, work: Path, nodes: int = 4, declared_nodes: int = 0
) -> Iterator[Cluster]:
    """A cluster of `nodes` that run jobs, or of `declared_nodes` that only exist on paper."""
    for name in ("etc", "run", "log", "state", "spool", "dev"):
        (work / name).mkdir(parents=True)
    names = [f"n{i}" for i in range(1, nodes + 1)]
    environment = _write_configuration(root, work, names, declared_nodes)
    settings = work / "etc" / "settings.json"
    munged = ["munged", "-F", "--force", "--num-threads=2"]
    munged += [f"--{k}={work}/{v}" for k, v in _MUNGE.items()]
    controller = ["slurmctld", "-D", "-c", "-f", environment["SLURM_CONF"]]
    settings.write_text(
        json.dumps(
            {
                "work": str(work),
                "root": str(root),
                "nodes": names,
                "munged": munged,
                "slurmctld": controller,
            }
        )
    )
    supervisor = subprocess.Popen(
        [
            *("unshare", "--mount", "--propagation", "private"),
            *(sys.executable, str(Path(__file__).with_name("supervisor.py")), str(settings)),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        assert supervisor.stdout is not None
        if supervisor.stdout.readline().strip() != "READY":
            log = work / "log" / "slurmctld.log"
            tail = log.read_text()[-2000:] if log.is_file() else "no log"
            raise AssertionError(f"Slurm did not come up: {tail}")
        yield Cluster(work, environment, supervisor)
    finally:
        assert supervisor.stdin is not None
        supervisor.stdin.close()
        supervisor.wait(timeout=60)


_MUNGE = {
    "key-file": "etc/munge.key",
    "socket": "run/munge.sock",
    "pid-file": "run/munged.pid",
    "log-file": "log/munged.log",
    "seed-file": "run/seed",
}


def _write_configuration(
    root: Path, work: Path, names: list[str], declared_nodes: int
) -> dict[str, str]:
    host = socket.gethostname().split(".")[0]
    ports = _free_ports(len(names) + 1)
    library = root / "usr" / "lib" / f"{os.uname().machine}-linux-gnu"
    key = work / "etc" / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    hosts = Path("/etc/hosts").read_text() + "".join(f"127.0.0.1 {n}\n" for n in names)
    (work / "etc" / "hosts").write_text(f"{hosts}127.0.0.1 {host}\n")
    for i in range(8):
        (work / "dev" / f"nvidia{i}").symlink_to("/dev/null")
    (work / "etc" / "gres.conf").write_text(
        f"Name=gpu Type=h100 File={work}/dev/nvidia[0-7] Flags=nvidia_gpu_env\n"
    )
    shape = "CPUs=64 Boards=1 SocketsPerBoard=2 CoresPerSocket=32 ThreadsPerCore=1"
    shape += " RealMemory=512000 Gres=gpu:h100:8"
    lines = [
        f"NodeName={name} NodeHostname={name} NodeAddr=127.0.0.1 Port={port} {shape}"
        for name, port in zip(names, ports[1:], strict=True)
    ]
    if declared_nodes:
        big = shape.replace("CPUs=64", "CPUs=128").replace("CoresPerSocket=32", "CoresPerSocket=64")
        lines.append(f"NodeName=h[1-{declared_nodes}] {big} State=CLOUD")
        power = "/bin/true"  # nodes of a cloud count as there while they are off
        lines += [f"SuspendProgram={power}", f"ResumeProgram={power}", "SuspendTime=86400"]
    (work / "etc" / "slurm.conf").write_text(
        "\n".join(
            [
                "ClusterName=test",
                f"SlurmctldHost={host}(127.0.0.1)",
                f"SlurmctldPort={ports[0]}",
                "SlurmUser=root",
                "SlurmdUser=root",
                "AuthType=auth/munge",
                f"AuthInfo=socket={work}/run/munge.sock,cred_expire=5",
                "CredType=cred/munge",
                f"PluginDir={library}/slurm-wlm",
                "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny",
                f"StateSaveLocation={work}/state",
                f"SlurmdSpoolDir={work}/spool/%n",
                f"SlurmctldPidFile={work}/run/ctld.pid",
                f"SlurmdPidFile={work}/run/%n.pid",
                f"SlurmctldLogFile={work}/log/slurmctld.log",
                f"SlurmdLogFile={work}/log/%n.log",
                "ProctrackType=proctrack/linuxproc",
                "TaskPlugin=task/none",
                "MpiDefault=none",
                "JobAcctGatherType=jobacct_gather/none",
                "AccountingStorageType=accounting_storage/none",
                "JobCompType=jobcomp/none",
                "SchedulerParameters=bf_interval=1,sched_interval=2",
                "SelectType=select/cons_tres",
                "SelectTypeParameters=CR_CPU_Memory",
                "DefMemPerCPU=1000",
                "SlurmdParameters=config_overrides",
                "ReturnToService=2",
                "MinJobAge=3600",
                "KillWait=3",
                f"SlurmdTimeout={0 if declared_nodes else 10}",
                "MailProg=/bin/true",
                "PropagateResourceLimits=NONE",
                "PreemptType=preempt/partition_prio",
                "PreemptMode=REQUEUE",
                "GresTypes=gpu",
                *lines,
                "PartitionName=batch Nodes=ALL Default=YES PriorityTier=5 PreemptMode=OFF",
                "PartitionName=low Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE",
                "PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF",
                "",
            ]
        )
    )
    return {
        **os.environ,
        "LD_LIBRARY_PATH": f"{library}:{library}/slurm-wlm",
        "PATH": f"{root}/usr/bin:{root}/usr/sbin:{os.environ['PATH']}",
        "SLURM_CONF": f"{work}/etc/slurm.conf",
    }


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
