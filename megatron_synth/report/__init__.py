"""A run in numbers in, one HTML page out.

In: `ReportData`, plain numbers and strings that `experiments` collects from manifests, metrics and
ledgers; a run that is not finished leaves parts of it empty. Out: one self-contained file that
answers the question first. Cost: well under a second; jinja2 is imported when a page is written.
"""

from pathlib import Path

from megatron_synth.report.data import (
    Arm,
    Corpus,
    Cost,
    Curve,
    Drop,
    HeldOut,
    Histogram,
    LedgerRow,
    Pairs,
    Range,
    ReportData,
    StepRow,
    Synthesis,
    TextPair,
    Tuning,
)
from megatron_synth.report.tables import write_tables

__all__ = [
    "Arm",
    "Corpus",
    "Cost",
    "Curve",
    "Drop",
    "HeldOut",
    "Histogram",
    "LedgerRow",
    "Pairs",
    "Range",
    "ReportData",
    "StepRow",
    "Synthesis",
    "TextPair",
    "Tuning",
    "write_report",
    "write_tables",
]


def write_report(data: ReportData, path: Path) -> None:
    """Write the page; see `report.page.write_report`."""
    from megatron_synth.report.page import write_report as write

    write(data, path)
