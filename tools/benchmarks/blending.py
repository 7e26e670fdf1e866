"""Streams at the size of the SBP 1T plan, and beside stock Megatron-Core's datasets.

    python tools/benchmarks/blending.py --work /tmp/blending [--json]
        [--only plan late arithmetic schedule stock serving] [--documents-scale 1.0]
        [--stock-documents 3000000 6000000 12000000] [--serving-tokens 200000000] ...

Makes 60M organic documents (50B tokens) and 150M synthetic ones (125B), that is 4.2 GB of `.idx`
and two sparse `.bin` (`blending_corpora.py`), and plans 1T tokens of them: synthetic once, organic
about 17.5 times, 244M windows. Everything is measured in a fresh process (`blending_probes.py`):
seconds from the start of the process, imports included; memory is RssAnon of the process, read
from outside 100 times a second until it ends, so mapped index files are apart. Parts:

- plan: until sample 0 is served, with an empty and a full index folder, with kernels that numba
  has yet to compile, and with the `.idx` files out of the page cache;
- late: until a late sample is served, with an empty and with a full index folder;
- arithmetic: which tokens sample i holds, none read, on one core;
- schedule: only which corpus serves sample i, at its worst: small batches, several corpora;
- stock: `BlendedMegatronDatasetBuilder` on the same plan at smaller scales (corpora and budget
  shrink together), and least-squares lines through its points, read off at the whole plan;
- serving: windows a second through a DataLoader, ours and stock's `GPTDataset` in turn on the same
  random tokens, each in its own order, best of --repeat, all in the page cache.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from blending_corpora import MadeCorpus

ORGANIC = MadeCorpus("organic", 60_000_000, 50_000_000_000)
SYNTHETIC = MadeCorpus("synthetic", 150_000_000, 125_000_000_000)
BUDGET = 1_000_000_000_000
LENGTH, BATCH = 4096, 2048
PARTS = ("plan", "late", "arithmetic", "schedule", "stock", "serving")
SCHEDULES = {  # shares of all corpora but the last
    3: [0.123456789, 0.333333333],
    6: [0.05123, 0.123456789, 0.271828, 0.0314159, 0.35123],
}

Row = dict[str, Any]


class Bench:
    """Runs probes in fresh processes.

    Args:
        work: Folder for everything that is made.
    """

    def __init__(self, work: Path) -> None:
        self.work = work
        self.corpora = work / "corpora"
        self.numba = work / "numba"
        self.indices = work / "indices"

    def probe(self, name: str, **arguments: Any) -> Row:
        """Run a probe; its answer, `ended_seconds`, `anonymous_bytes` and the load it met."""
        script = Path(__file__).with_name("blending_probes.py")
        environment = {
            **os.environ,
            "NUMBA_CACHE_DIR": str(self.numba),
            "MEGATRON_SYNTH_INDEX": str(self.indices),
            "PYTHONWARNINGS": "ignore",
        }
        command = [sys.executable, str(script), name, json.dumps(arguments)]
        load = os.getloadavg()[0]
        began = time.monotonic()
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        peak = [0]
        sampler = threading.Thread(target=_sample, args=(process, peak))
        sampler.start()
        said, _ = process.communicate()
        ended = time.monotonic()
        sampler.join()
        if process.returncode:
            raise SystemExit(f"{name} failed: exit status {process.returncode}")
        answer: Row = json.loads(said)
        for key in [key for key in answer if key.endswith("_at")]:
            answer[f"{key[:-3]}_seconds"] = answer.pop(key) - began
        ended_seconds = ended - began
        figures = {"ended_seconds": ended_seconds, "anonymous_bytes": peak[0], "load": load}
        answer |= figures
        note(", ".join(f"{k} {v:,.1f}" for k, v in answer.items() if isinstance(v, float | int)))
        return answer

    def make(self, corpora: list[MadeCorpus]) -> dict[str, str]:
        """Make the corpora; the prefix of each, by the name without a scale."""
        for corpus in corpora:
            note(f"{corpus.name}: {corpus.documents:,} documents, {corpus.tokens:,} tokens")
            corpus.make(self.corpora)
        return {c.name.partition("-")[0]: str(c.prefix(self.corpora)) for c in corpora}

    def empty(self, folder: Path) -> Path:
        """The folder, with nothing in it."""
        shutil.rmtree(folder, ignore_errors=True)
        return folder


def _sample(process: "subprocess.Popen[str]", peak: list[int]) -> None:
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        try:
            lines = status.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:  # it ended meanwhile
            return
        for line in lines:
            if line.startswith("RssAnon:"):
                peak[0] = max(peak[0], int(line.split()[1]) * 1024)
        time.sleep(0.01)


def note(text: str) -> None:
    """Say on stderr what goes on; stdout is for the results."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def blend_of(scale: float) -> Row:
    """The SBP 1T blend, its budget scaled."""
    return {
        "budget": {"tokens": round(BUDGET * scale)},
        "sequence_length": LENGTH,
        "global_batch_size": BATCH,
        "corpora": {"synthetic": {"epochs": 1}, "organic": {}},
    }


class WholePlan:
    """The parts that need the large corpora."""

    def __init__(self, bench: Bench, scale: float) -> None:
        corpora = [ORGANIC, SYNTHETIC]
        self._made = [c if scale == 1 else c.scaled(scale) for c in corpora]
        self._bench = bench
        self.blend = blend_of(scale)
        self.prefixes = bench.make(self._made)
        self.file = str(bench.work / "plan.json")
        solved = bench.probe("plan", blend=self.blend, prefixes=self.prefixes, out=self.file)
        note(f"plan solved\n{solved['table']}")
        self.solving = solved
        plan = json.loads(Path(self.file).read_text(encoding="utf-8"))
        self.samples = plan["steps"] * plan["global_batch_size"]
        self.windows = {c["name"]: c["windows"] for c in plan["corpora"]}

    def first_sample(self) -> list[Row]:
        """Part plan."""
        bench, rows = self._bench, []
        bench.empty(bench.numba)
        solve = {"blend": self.blend}
        for what, empty, cold, extra in (
            ("plan solved, folder empty, kernels uncompiled", True, False, solve),
            ("plan solved, folder empty", True, False, solve),
            ("plan loaded, folder empty", True, False, {}),
            ("plan loaded, folder full", False, False, {}),
            ("plan loaded, folder empty, .idx on disk only", True, True, {}),
        ):
            if empty:
                bench.empty(bench.indices)
            if cold:
                self._forget()
            rows.append(self._serve(what, 0, **extra))
        return rows

    def late_samples(self, count: int) -> list[Row]:
        """Part late."""
        rng = random.Random(0)
        samples = [min(243_999_999, self.samples - 1)]
        samples += [rng.randrange(self.samples // 2, self.samples) for _ in range(count)]
        rows = []
        for sample in samples:
            self._bench.empty(self._bench.indices)
            rows.append(self._serve(f"sample {sample:,}, folder empty", sample))
            rows.append(self._serve(f"sample {sample:,}, folder full", sample))
        return rows

    def arithmetic(self, seconds: float, every_epoch: bool) -> Row:
        """Part arithmetic."""
        note("arithmetic")
        return self._bench.probe(
            "arithmetic",
            plan_file=self.file,
            prefixes=self.prefixes,
            seconds=seconds,
            every_epoch=every_epoch,
        )

    def remove(self) -> None:
        """Remove the corpora."""
        for corpus in self._made:
            corpus.remove(self._bench.corpora)

    def _serve(self, what: str, sample: int, **extra: Any) -> Row:
        note(what)
        arguments = {"plan_file": self.file, "prefixes": self.prefixes, "sample": sample, **extra}
        answer = self._bench.probe("serve", **arguments)
        size = sum(f.stat().st_size for f in self._bench.indices.glob("*.npy"))
        return {"what": what, **answer, "index_bytes": size}

    def _forget(self) -> None:
        for path in self._bench.corpora.glob("*.idx"):
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def schedules(bench: Bench, samples: int, seconds: float) -> list[Row]:
    """Part schedule."""
    rows = []
    for batch in (1, 8):
        for corpora, shares in SCHEDULES.items():
            note(f"schedule, global batch {batch}, {corpora} corpora")
            answer = bench.probe(
                "schedule", samples=samples, batch=batch, shares=shares, seconds=seconds
            )
            rows.append({"batch": batch, "corpora": corpora, **answer})
    return rows


def stock(bench: Bench, organic: list[int]) -> Row:
    """Part stock: its points, ours at its largest point, and the lines."""
    points = []
    for documents in organic:
        scale = documents / ORGANIC.documents
        made = [ORGANIC.scaled(scale), SYNTHETIC.scaled(scale)]
        prefixes = bench.make(made)
        file = str(bench.work / f"plan-{scale:g}.json")
        bench.probe("plan", blend=blend_of(scale), prefixes=prefixes, out=file)
        plan = json.loads(Path(file).read_text(encoding="utf-8"))
        cache = bench.empty(bench.work / "stock")
        arguments = {
            "prefixes": [prefixes[c["name"]] for c in plan["corpora"]],
            "weights": [c["windows"] for c in plan["corpora"]],
            "samples": plan["steps"] * plan["global_batch_size"],
            "sequence_length": LENGTH,
            "cache": str(cache),
        }
        note("stock, cache empty")
        answer = bench.probe("stock", **arguments)
        note("stock, cache full; ours, folder empty")
        again = bench.probe("stock", **arguments)
        bench.empty(bench.indices)
        ours = bench.probe("serve", plan_file=file, prefixes=prefixes, sample=0)
        points.append(
            {
                **answer,
                "documents": sum(c.documents for c in made),
                "epochs_x_documents": sum(
                    c["documents"] * c["windows"] / c["windows_per_epoch"] for c in plan["corpora"]
                ),
                "index_bytes": sum(f.stat().st_size for f in cache.glob("*.npy")),
                "again_seconds": again["ready_seconds"],
                "ours_seconds": ours["ready_seconds"],
                "ours_anonymous_bytes": ours["anonymous_bytes"],
            }
        )
        bench.empty(cache)
        for corpus in made:
            corpus.remove(bench.corpora)
    keys = ("ready_seconds", "cpu_seconds", "anonymous_bytes", "index_bytes")
    whole = BUDGET // (LENGTH * BATCH) * BATCH
    return {"points": points, "whole": {key: _line(points, key, whole) for key in keys}}


def _line(points: list[Row], key: str, whole: int) -> Row:
    """Least squares over samples, read off at the whole plan."""
    samples = np.array([p["samples"] for p in points], dtype=float)
    values = np.array([p[key] for p in points], dtype=float)
    slope, start = np.polyfit(samples, values, 1)
    off = float(np.max(np.abs(start + slope * samples - values) / values))
    return {
        "a_million_samples": slope * 1e6,
        "at_zero": start,
        "largest_miss": off,
        "at_samples": whole,
        "extrapolated": start + slope * whole,
    }


def serving(bench: Bench, options: argparse.Namespace) -> list[Row]:
    """Part serving."""
    corpus = MadeCorpus(
        "serving", options.serving_tokens // 833, options.serving_tokens, filled=True
    )
    prefix = bench.make([corpus])["serving"]
    rows = []
    for length in (4096, 512):
        note(f"serving, S {length}")
        answer = bench.probe(
            "serving",
            prefix=prefix,
            sequence_length=length,
            batches=options.serving_batches,
            seconds=options.serving_seconds,
            repeat=options.repeat,
            cache=str(bench.work / "stock"),
        )
        for row in answer["rows"]:
            (ours, ours_cpu), (theirs, theirs_cpu) = row.pop("ours"), row.pop("stock")
            default, _ = row.pop("ours_default")
            rows.append(
                {
                    "sequence_length": length,
                    **row,
                    **{"ours": ours, "stock": theirs, "ratio": ours / theirs},
                    **{"ours_default": default, "ratio_default": default / theirs},
                    **{"ours_cpu": ours_cpu, "stock_cpu": theirs_cpu},
                    "ratio_cpu": ours_cpu / theirs_cpu,
                }
            )
    bench.empty(bench.work / "stock")
    corpus.remove(bench.corpora)
    return rows


def show(results: Row) -> None:
    """Print the tables."""
    machine = results["machine"]
    print(f"{machine['cores']} cores, load {machine['load'][0]:.2f} before, ", end="")
    print(f"{machine['load_after'][0]:.2f} after")
    if "solving" in results:
        print(f"\n{results['solving']['table']}\n")
        print(
            "seconds from start: imported, checked, sample served, process ended; CPU until served"
        )
        columns = ("imported", "checked", "served", "ended", "CPU", "anonymous", "index", "load")
        print(" " * 50 + "".join(f"{name:>10}" for name in columns))
        for row in [
            {**results["solving"], "what": "the plan alone, solved"},
            *results.get("plan", []),
            *results.get("late", []),
        ]:
            times = ("opened_seconds", "checked_seconds", "ready_seconds", "ended_seconds")
            print(
                f"{row['what']:50}"
                + "".join(f"{row[t]:10.1f}" if t in row else f"{'-':>10}" for t in times)
                + f"{row['cpu_seconds']:10.1f}{row['anonymous_bytes'] / 1e6:7,.0f} MB"
                f"{row.get('index_bytes', 0) / 1e6:7,.0f} MB{row['load']:10.1f}"
            )
    if "arithmetic" in results:
        print("\nindex arithmetic on one core, samples/s (none read)")
        _rates(results["arithmetic"])
        print("  the same by the CPU seconds that it got:")
        _rates(results["arithmetic"], "samples_per_cpu_second")
    for row in results.get("schedule", []):
        print(
            f"\nschedule alone, global batch {row['batch']}, {row['corpora']} corpora: last sample "
            f"after {row['last_sample_seconds']:.1f} s, {row['anonymous_bytes'] / 1e6:,.0f} MB"
        )
        _rates(row)
    if "stock" in results:
        _show_stock(results["stock"])
    if "serving" in results:
        columns = ("ours", "stock", "ratio", "def. coll.", "ratio")
        columns += ("ours/CPU s", "stock/CPU s", "ratio")
        print(f"\n{'windows/s through a DataLoader':34}" + "".join(f"{c:>12}" for c in columns))
        for row in results["serving"]:
            what = f"S {row['sequence_length']}, {row['workers']} workers, batch {row['batch']}"
            print(
                f"{what:34}{row['ours']:12,.0f}{row['stock']:12,.0f}{row['ratio']:12.2f}"
                f"{row['ours_default']:12,.0f}{row['ratio_default']:12.2f}"
                f"{row['ours_cpu']:12,.0f}{row['stock_cpu']:12,.0f}{row['ratio_cpu']:12.2f}"
            )


def _rates(row: Row, key: str = "samples_per_second") -> None:
    for name, rate in row[key].items():
        print(f"  {name:60}{rate:10,.0f}")


def _show_stock(results: Row) -> None:
    columns = ("documents", "x epochs", "samples", "ready", "CPU", "again")
    columns += ("anonymous", "index", "ours")
    print("\nstock, the same plan at smaller scales (again: cache full; ours: folder empty)")
    print("".join(f"{name:>14}" for name in columns))
    for p in results["points"]:
        print(
            f"{p['documents']:14,}{p['epochs_x_documents']:14,.0f}{p['samples']:14,}"
            f"{p['ready_seconds']:12.1f} s{p['cpu_seconds']:12.1f} s{p['again_seconds']:12.1f} s"
            f"{p['anonymous_bytes'] / 1e9:11.2f} GB{p['index_bytes'] / 1e9:11.2f} GB"
            f"{p['ours_seconds']:6.1f} s, {p['ours_anonymous_bytes'] / 1e6:,.0f} MB"
        )
    for key, line in results["whole"].items():
        unit, by = ("s", 1.0) if key.endswith("seconds") else ("GB", 1e9)
        print(
            f"  {key}: {line['at_zero'] / by:.3g} {unit} + {line['a_million_samples'] / by:.3g} "
            f"{unit} a million samples (least squares, off by {100 * line['largest_miss']:.0f} % "
            f"at most); at {line['at_samples']:,} samples {line['extrapolated'] / by:,.1f} {unit}"
        )


def options_of() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", required=True, type=Path, help="folder for what is made")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--keep", action="store_true", help="keep the whole plan's corpora")
    parser.add_argument("--documents-scale", type=float, default=1.0, help="of the whole plan")
    parser.add_argument("--late-samples", type=int, default=3, help="drawn ones; one is given")
    parser.add_argument(
        "--every-epoch", action="store_true", help="arithmetic at random over all epochs too"
    )
    parser.add_argument(
        "--stock-documents",
        type=int,
        nargs="+",
        default=[3_000_000, 6_000_000, 12_000_000],
        help="organic documents of each size",
    )
    parser.add_argument("--serving-tokens", type=int, default=200_000_000)
    parser.add_argument("--serving-batches", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--serving-seconds", type=float, default=0.5, help="of each repeat")
    parser.add_argument("--repeat", type=int, default=7, help="of serving; the best is taken")
    parser.add_argument("--seconds", type=float, default=3, help="of arithmetic and schedule, each")
    return parser.parse_args()


def main() -> None:
    """Run the parts, print the tables or the JSON."""
    options = options_of()
    bench = Bench(options.work.resolve())
    bench.work.mkdir(parents=True, exist_ok=True)
    machine: Row = {"cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()}
    results: Row = {"machine": machine}
    if {"plan", "late", "arithmetic"} & set(options.only):
        whole = WholePlan(bench, options.documents_scale)
        results["solving"] = whole.solving
        if "plan" in options.only:
            results["plan"] = whole.first_sample()
        if "late" in options.only:
            results["late"] = whole.late_samples(options.late_samples)
        if "arithmetic" in options.only:
            results["arithmetic"] = whole.arithmetic(options.seconds, options.every_epoch)
        if not options.keep:
            whole.remove()
    if "schedule" in options.only:
        samples = BUDGET // (LENGTH * BATCH) * BATCH
        results["schedule"] = schedules(bench, samples, options.seconds)
    if "stock" in options.only:
        results["stock"] = stock(bench, options.stock_documents)
    if "serving" in options.only:
        results["serving"] = serving(bench, options)
    bench.empty(bench.indices)
    machine["load_after"] = os.getloadavg()
    if options.json:
        print(json.dumps(results))
    else:
        show(results)


if __name__ == "__main__":
    main()
