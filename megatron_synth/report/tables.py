"""The figures of a report as CSV files, for spreadsheets and plotting programs."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from megatron_synth.report.data import Cost, Drop, LedgerRow, Range, ReportData
from megatron_synth.runs import atomic_write

_ARMS = (
    *("arm", "role", "loss", "loss_error", "difference", "difference_low", "difference_high"),
    *("recovery", "recovery_low", "recovery_high", "tokens", "synthetic_share", "epochs"),
)


def write_tables(data: ReportData, folder: Path) -> list[Path]:
    """Write `arms.csv`, `curves.csv`, `ledger.csv`, `drops.csv` and `costs.csv`, each atomically.

    Empty cells are values that are not there. Returns the files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tables: dict[str, tuple[Sequence[str], Iterable[Sequence[Any]]]] = {
        "arms": (
            _ARMS,
            (
                (
                    *(arm.name, arm.role, arm.loss, arm.loss_error),
                    *_range(arm.difference),
                    *_range(arm.recovery),
                    *(arm.tokens, arm.synthetic_share, arm.epochs),
                )
                for arm in data.arms
            ),
        ),
        "curves": (
            ("arm", "kind", "stream", "tokens", "loss"),
            (
                (curve.arm, curve.kind, curve.stream, tokens, loss)
                for curve in (*data.curves, *(data.tuning.curves if data.tuning else ()))
                for tokens, loss in zip(curve.tokens, curve.loss, strict=True)
            ),
        ),
        "ledger": (
            tuple(LedgerRow.model_fields),
            (tuple(row.model_dump().values()) for row in data.ledger),
        ),
        "drops": (
            ("step", "reason", "count"),
            [
                *_drops("corpus", data.corpus.drops if data.corpus else ()),
                *_drops("pairs", data.pairs.drops if data.pairs else ()),
                *_drops("synthesis", data.synthesis.drops if data.synthesis else ()),
            ],
        ),
        "costs": (
            tuple(Cost.model_fields),
            (tuple(cost.model_dump().values()) for cost in data.costs),
        ),
    }
    paths = []
    for name, (header, rows) in tables.items():
        path = folder / f"{name}.csv"
        with atomic_write(path) as handle:
            writer = csv.writer(handle, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(rows)
        paths.append(path)
    return paths


def _range(value: Range | None) -> tuple[float | None, ...]:
    return (None, None, None) if value is None else (value.estimate, value.low, value.high)


def _drops(step: str, drops: Sequence[Drop]) -> list[tuple[str, str, int]]:
    return [(step, drop.reason, drop.count) for drop in drops]
