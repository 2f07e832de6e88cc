"""The table that a notebook shows for a frontier."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from xlingtox.frontiers.halves import ALL
from xlingtox.html import tables
from xlingtox.html.escaping import escaped


def html(
    at_budget: pd.DataFrame,
    wins: pd.DataFrame,
    costs: pd.DataFrame,
    *,
    ratio: float,
    judge: str,
    warnings: Sequence[str],
) -> str:
    """Return the warnings, and a row for each method at one budget: the lowest toxicity first, controls last.

    Args:
        at_budget, wins, costs: the tables of `Frontier` of these names.
    """
    together = at_budget[at_budget.language == ALL].sort_values(["control", "toxicity"], kind="stable")
    by_method = {str(row["method"]): row for row in wins.merge(costs, on="method").to_dict("records")}
    rows = []
    for row in together.to_dict("records"):
        more = by_method[row["method"]]
        rows.append(
            [
                escaped(row["method"]) + (" (control)" if row["control"] else ""),
                tables.number(row["strength"], 2),
                f"{tables.number(row['toxicity'])} ({tables.number(row['low'])} to {tables.number(row['high'])})",
                f"{tables.number(row['change'], signed=True)} ({tables.number(row['change_low'], signed=True)} to "
                f"{tables.number(row['change_high'], signed=True)})",
                tables.number(row["perplexity"], 2),
                tables.percent(row["degenerate"], digits=1),
                escaped(row["stopped_by"]),
                f"{more['languages_lowest']} ({more['languages_clearly_lowest']} clearly)",
                tables.number(more["token_seconds"], 2),
                "yes" if more["baked"] else "no",
            ]
        )
    columns = ["Method", "Strength", "Toxicity (95 % interval)", "Change (95 % interval)", "Perplexity", "Degenerate"]
    columns += ["Stopped by", "Languages in which it is lowest", "Time a token", "Can be baked"]
    n_languages = at_budget.language.nunique() - 1
    caption = (
        f"Methods at {tables.percent(ratio - 1, signed=True)} perplexity, mean over {n_languages} "
        f"language{'' if n_languages == 1 else 's'}, scored by {escaped(judge)}"
    )
    return tables.warnings(warnings) + tables.table(caption, columns, rows)
