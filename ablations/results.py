"""What ``action=results`` tells of a grid: its table, one tidy row a number, and how many seeds it would need.

Reads the store and the grid's record alone, each result file once, and imports neither torch nor pandas.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reports.stats import EFFECT, POWER, Paired, pooled_sd, seeds_needed
from reports.tables import Record, Results, Table, grid_table, in_order, point_of, read_results, runs_of
from reports.writers import to_dict
from reports.writers import to_text as table_text

COLUMNS = (
    "grid", "cell", "baseline", "reference", "seed", "run_id", "group_id", "task", "protocol", "metric", "value",
    "seconds", "commit", "dirty",
)  # fmt: skip


def to_text(store: Path, record: Record) -> str:
    """Return the grid's table for people, and with how many seeds it could see a difference."""
    table = grid_table(store, record)
    return f"{table_text(table)}\n{power_line(table)}\n"


def to_json(store: Path, record: Record, **more: Any) -> str:
    """Return one JSON document: the table's model, ``tidy``, ``comparisons``, ``power``, and whatever else is given."""
    results = read_results(store, record)
    table = grid_table(store, record, results)
    document = to_dict(table) | {
        "tidy": tidy(store, record, results),
        "comparisons": comparisons(table),
        "power": power(table),
        **more,
    }
    return "{\n" + ",\n".join(f"{json.dumps(key)}: {_json(value)}" for key, value in document.items()) + "\n}\n"


def _json(value: Any) -> str:
    """Write a value in one line, but a list in a line an entry: to read, and fast where json's own indent is not."""
    if not isinstance(value, list | tuple) or not value:
        return json.dumps(value, allow_nan=False)
    return "[\n" + ",\n".join(json.dumps(one, allow_nan=False) for one in value) + "\n]"


def tidy(store: Path, record: Record, results: Results | None = None) -> list[dict[str, Any]]:
    """Return a row for every (cell, seed, task, metric) that the store has, its value on each axis among the columns.

    What is missing has no row; the table counts it. A run that serves several seeds (raw pixels) has one row.
    ``seconds`` are those of the task. An axis that is called like another column is found as ``axis NAME``.
    """
    results = read_results(store, record) if results is None else results
    cells = [(cell, point_of(record, cell)) for cell in in_order(record)]
    axes = dict.fromkeys([*record["axes"], *(axis for _, point in cells for axis in point)])
    names = {axis: f"axis {axis}" if axis in COLUMNS else axis for axis in axes}
    return [
        {"grid": record["grid"], "cell": cell["label"]}
        | {name: point.get(axis) for axis, name in names.items()}
        | {"baseline": cell["baseline"], "reference": cell["reference"], "seed": seed}
        | row
        for cell, point in cells
        for seed, run in runs_of(cell).items()
        for task in record["tasks"]
        if (run, task) in results
        for row in _rows(results[run, task])
    ]


def _rows(result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a row for each metric of a result."""
    shared = {name: result[name] for name in ("run_id", "group_id", "task", "protocol")}
    seconds, origin = result["cost"]["seconds"], result["provenance"]
    last = {"seconds": seconds, "commit": origin.get("commit"), "dirty": origin.get("dirty")}
    for metric, value in result["metrics"].items():
        yield shared | {"metric": metric, "value": value} | last


def comparisons(table: Table) -> list[dict[str, Any]]:
    """Return for each cell the grid's own metric, and its paired difference to the baseline where it has one.

    ``n``, ``mean`` and ``sd`` are those of the cell's values; ``common`` counts the seeds that the baseline has too,
    and ``sd_difference`` is the spread of the differences at these.
    """
    return [
        {
            "cell": row.label,
            "kind": row.kind,
            "point": row.point,
            **{key: getattr(row.measures[table.headline].summary, key) for key in ("n", "mean", "sd")},
            **_compared(row.comparison or Paired(0)),
            "p_holm": row.adjusted,
        }
        for row in table.rows
    ]


def _compared(pair: Paired) -> dict[str, Any]:
    own = {key: getattr(pair, key) for key in ("difference", "low", "high", "p")}
    return own | {"common": pair.n, "sd_difference": pair.sd}


def power(table: Table) -> dict[str, Any]:
    """Return how the paired differences spread, and with how many seeds a difference of ``effect`` shows."""
    sds = [row.comparison.sd for row in table.rows if row.comparison and row.comparison.sd is not None]
    found = {"seeds": seeds_needed(sds), "sd": pooled_sd(sds), "comparisons": len(sds)}
    return {"effect": EFFECT, "power": POWER, **found}


def power_line(table: Table) -> str:
    """Return what ``power`` tells, in a sentence."""
    found = power(table)
    aim = f"to see {found['effect']} points ({found['power']:.0%} power)".replace("%", " %")
    if found["sd"] is None:
        return f"{aim}: unknown until a cell and the baseline have two seeds in common"
    pooled = f"pooled over {found['comparisons']} comparison{'s' if found['comparisons'] > 1 else ''}"
    seeds = "unknown" if found["seeds"] is None else f"{found['seeds']} seeds"
    return f"{aim}: {seeds}; the paired differences spread by sd {found['sd']:.3g} ({pooled})"
