"""A plain text table."""

from collections.abc import Sequence


def render_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> str:
    """Align `rows` under `columns`: the first `left` columns to the left, numbers to the right."""
    cells = [tuple(columns), *map(tuple, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
