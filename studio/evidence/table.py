"""The ranked checkpoints of an evidence sheet as a table for the terminal."""

import io

from studio.evidence.plan import Plan
from studio.evidence.result import Evidence
from studio.evidence.rows import rows_of
from studio.evidence.words import MEASURES, STAGES

WIDTH = 100  # columns


def ranked_table(plan: Plan, evidence: Evidence) -> str:
    """Best first."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("", "training", *(measure.label.lower() for measure in MEASURES), "score"):
        table.add_column(title, overflow="fold")
    for row in rows_of(evidence, plan):
        cells = [
            row["name"],
            STAGES[row["stage"]],
            *(row[measure.name] for measure in MEASURES),
            row["score"],
        ]
        table.add_row(*map(Text, cells))
    stream = io.StringIO()
    Console(file=stream, width=WIDTH, color_system=None, highlight=False).print(table)
    return stream.getvalue()
