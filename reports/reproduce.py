"""REPRODUCE.md and model-index.yaml: the exact command behind every number, and what checklists of conferences ask."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from reports.cells import Row, listed
from reports.evidence import Result
from reports.report import Report, Run, Section
from reports.stats import LEVEL
from reports.writers import plain

TYPES = {"coco": "object-detection", "ade20k": "image-segmentation"}  # of model cards; the others classify images
UNKNOWN = "unknown: the runs keep no record of it"
SHOWN = 12  # values of an axis that stand in a line


def to_reproduce(report: Report) -> str:
    """Return REPRODUCE.md."""
    parts = [_head(report), *(_section(section, report.runs) for section in report.sections), _checklist(report)]
    return "\n".join(parts)


def _head(report: Report) -> str:
    digests = " ".join(f"{section.name}:{section.table.digest}" for section in report.sections)
    draft = "**DRAFT**: planned results are missing; the tables say which.\n\n" if report.draft else ""
    commits = Counter(run.commit or "unknown" for run in report.runs.values() if run.training or run.results)
    came = ", ".join(f"{commit} ({count} runs)" for commit, count in commits.most_common())
    return (
        f"<!-- rows {digests} -->\n# How to get every number again\n\n{draft}"
        f"The runs are of the code at {came}; a + marks changes that were not committed.\n"
        "Check out that commit, then\n\n"
        "    make install\n\n"
        "A command whose run the store has already does nothing again. DIR is the folder of the data. A grid's\n"
        "command runs its cells, seeds and tasks; those beneath it do the same one by one.\n"
    )


def _section(section: Section, runs: Mapping[str, Run]) -> str:
    lines = [f"## {plain(section.title)} ({section.name})\n"]
    if section.command:
        lines.append(f"    {' '.join(section.command.split())}\n")
    found = ((row, [runs[run] for run in dict.fromkeys(_runs_of(row))]) for row in section.table.rows)
    lines += [_row(row, own) for row, own in found if own]
    lines += [f"Not drawn: {plain(reason)}\n" for reason in section.notes]
    return "\n".join(lines)


def _runs_of(row: Row) -> Iterator[str]:
    for one in row.measures:
        yield from one.runs.values()


def _row(row: Row, runs: Sequence[Run]) -> str:
    """Return the commands of one row: a line a command; where they differ in the seed or the run alone, one for all."""
    numbers = "; ".join(cell.text for cell in row.cells if cell.runs)
    lines = [f"### {plain(row.label)}: {plain(numbers or '--')}\n"]
    trained = Counter(run.command.replace(f"seed={run.seed}", "seed=$seed", 1) for run in runs if run.command)
    for command in trained:
        seeds = [str(run.seed) for run in runs if run.command.replace(f"seed={run.seed}", "seed=$seed", 1) == command]
        lines.append("    " + _for("seed", seeds, command))
    tasks = {(one.task, one.protocol) for one in row.measures}
    for task, protocol in sorted(tasks):
        commands = [(run.run, run.commands.get(f"{task}@{protocol}", "")) for run in runs]
        for command in dict.fromkeys(text.replace(run, "$run") for run, text in commands if text):
            own = [run for run, text in commands if text.replace(run, "$run") == command]
            lines.append("    " + _for("run", own, command))
    strangers = [run.run for run in runs if not run.command]
    if strangers:
        lines.append(f"    # not trained here, or by another version of the recipes: {' '.join(strangers)}")
    return "\n".join(lines) + "\n"


def _for(name: str, values: Sequence[str], command: str) -> str:
    if len(values) == 1:
        return command.replace(f"${name}", values[0])
    return f"for {name} in {' '.join(values)}; do {command}; done"


# ---- the checklist ----


def _checklist(report: Report) -> str:
    rows = [*_asked_of_runs(report), *_asked_of_cost(report), *_asked_of_data(report)]
    lines = [
        "## Reproducibility checklist\n",
        "The questions are those of the ML Reproducibility Checklist v2.0 and of items 7 and 8 of NeurIPS' checklist,\n"
        "in our words.\n",
        "| asked | answer |",
        "|:--|:--|",
        *(f"| {plain(question)} | {plain(answer)} |" for question, answer in rows),
    ]
    return "\n".join(lines) + "\n"


def _asked_of_runs(report: Report) -> Iterator[tuple[str, str]]:
    runs = list(report.runs.values())
    seeds = sorted({run.seed for run in runs if run.seed is not None})
    for section in report.sections:
        if section.kind == "grid" and (axes := _axes(section)):
            yield f"hyper-parameters considered in {section.name}", axes
    yield (
        "how settings were selected",
        "the grids' values are all shown and none is selected; a probe's settings are chosen on a part of train "
        "(minival), and its number is that of the last epoch on val",
    )
    trained = sum(bool(run.training.get("steps")) for run in runs)
    yield "number of training runs", f"{trained} finished, seeds {listed(seeds)}"
    yield "number of evaluation runs", str(sum(len(run.results) for run in runs))
    attempts, failed = sum(run.spent.attempts for run in runs), sum(run.spent.failed for run in runs)
    yield "attempts, with those that failed", f"{attempts}, of which {failed} failed or were cut off"
    yield (
        "error bars",
        f"± is the standard deviation over seeds (n - 1); brackets are {100 * LEVEL:.0f} % t intervals of paired "
        "differences, which take these as normal; p values are those of paired t-tests, Holm-adjusted within a grid",
    )
    dropped = "; ".join(f"{run}: {reason}" for run, reason in report.dropped.items())
    yield "seeds that were left out", dropped or "none"


def _axes(section: Section) -> str:
    values: dict[str, list[str]] = {}
    for row in section.table.rows:
        for axis, value in row.point.items():
            if str(value) not in values.setdefault(axis, []):
                values[axis].append(str(value))
    return "; ".join(
        f"{axis}: {', '.join(own[:SHOWN])}" + (f" and {len(own) - SHOWN} more" if len(own) > SHOWN else "")
        for axis, own in values.items()
    )


def _asked_of_cost(report: Report) -> Iterator[tuple[str, str]]:
    runs = list(report.runs.values())
    training = [run.training.get("seconds", 0.0) for run in runs if run.training.get("steps")]
    tasks = [result["cost"]["seconds"] for run in runs for result in run.results.values()]
    if training:
        yield "average training time of a run", f"{sum(training) / len(training):.0f} s"
    if tasks:
        yield "average time of an evaluation", f"{sum(tasks) / len(tasks):.1f} s"
    waste = sum(run.spent.waste for run in runs)
    yield (
        "compute in all",
        f"{(sum(training) + sum(tasks)) / 3600:.2f} hours of training and evaluation, and {waste / 3600:.2f} hours of "
        "attempts that failed or were cut off",
    )
    machines = Counter(_machine(run.environment) for run in runs if run.environment)
    told = [f"{machine} ({count} runs)" for machine, count in machines.most_common()]
    yield "infrastructure", "; ".join(told) or UNKNOWN
    known = (run.environment.get("versions") or {} for run in runs)
    versions = Counter(", ".join(f"{name} {which}" for name, which in one.items()) for one in known)
    yield "software", "; ".join(text for text, _ in versions.most_common() if text) or UNKNOWN


def _machine(environment: Mapping[str, Any]) -> str:
    own = environment.get("machine") or {}
    memory = f"{own['memory'] / 2**30:.0f} GiB" if own.get("memory") else ""
    cores = f"{own['cores']} cores" if own.get("cores") else ""
    processes = environment.get("processes", 1)
    several = f"{processes} processes" if processes and processes > 1 else ""
    told = (environment.get("device"), several, environment.get("precision"), cores, memory, own.get("system"))
    return ", ".join(str(one) for one in told if one)


def _asked_of_data(report: Report) -> Iterator[tuple[str, str]]:
    found: dict[str, None] = {}
    for run in report.runs.values():
        for result in run.results.values():
            train, val, images = (result["inputs"].get(key) for key in ("train", "val", "data"))
            sizes = ", ".join(f"{count} {what}" for count, what in ((train, "train"), (val, "val")) if count)
            found[f"{_data(result, run)}: {sizes}, fingerprint {images}"] = None
    for number, line in enumerate(sorted(found), start=1):
        yield f"data {number}", line


def _data(result: Result, run: Run) -> str:
    """Return the name of the images of a result."""
    return str(result["settings"].get("data") or run.config.get("data.name") or "data")


# ---- model cards ----


def to_model_index(report: Report) -> str:
    """Return the model-index of Hugging Face's model cards, for every trained row of the tasks' tables."""
    import yaml

    models: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for section in report.sections:
        for row in section.table.rows if section.kind == "paper" else ():
            if row.kind == "cell" and row.point.get("epochs") != "0":
                group = next((report.runs[run].group for run in _runs_of(row)), "")
                models.setdefault((row.label, group), []).extend(_metrics(section, row, report.runs))
    entries = [{"name": name, "results": results} for (name, _), results in models.items()]
    digests = " ".join(f"{section.name}:{section.table.digest}" for section in report.sections)
    return f"# rows {digests}\n" + yaml.safe_dump({"model-index": entries}, sort_keys=False, allow_unicode=True)


def _metrics(section: Section, row: Row, runs: Mapping[str, Run]) -> Iterator[dict[str, Any]]:
    for one in row.measures:
        known = [runs[run].results.get(f"{one.task}@{one.protocol}") for run in one.runs.values() if run in runs]
        some = next((result for result in known if result), None)
        if some is None or one.summary.mean is None:
            continue
        data = _data(some, runs[some["run_id"]])
        seeds = "1 seed" if one.summary.n == 1 else f"mean over n = {one.summary.n} seeds"
        name = f"{one.metric}, {seeds}, protocol {one.protocol}"
        kind = {"top1": "accuracy", "top5": "top_5_accuracy"}.get(one.metric, one.metric)
        yield {
            "task": {"type": TYPES.get(one.task, "image-classification"), "name": section.title},
            "dataset": {"type": data, "name": data, "revision": str(some["inputs"].get("data", ""))},
            "metrics": [{"type": kind, "name": name, "value": one.summary.mean, "verified": False}],
        }
