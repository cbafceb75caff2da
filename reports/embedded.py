"""What the page knows of each run, once and in few bytes: the JSON from which it shows what lies behind a number.

``words`` are texts that others name by their place. ``base`` is the configuration that most groups have, ``groups``
what each has instead: ``[values, names that it lacks]``. ``protocols`` are ``[task@protocol, settings]``, ``metrics``
are names. A run is ``[group, seed, command, seconds, device, commit, finished, results]``, where -1 is no group, and a
result is ``[protocol, command, seconds, device, commit, created, metric, value, metric, value, ...]``. Commands,
devices and commits are places in ``words``; the first U+0001 in a command stands for the run's own seed or id; a time
is in seconds since 1970.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from reports.evidence import FREE, Result
from reports.report import Report, Run
from smog.identity import leaves

OWN = "\u0001"  # in no command that a shell can be given
Values = dict[str, dict[str, dict[str, float]]]  # run -> task@protocol -> metric -> value


class _Places:
    """The place of each content in a list that grows; equal content has one place."""

    def __init__(self) -> None:
        self.known: dict[Any, int] = {}

    def __call__(self, content: Any) -> int:
        return self.known.setdefault(content, len(self.known))

    def all(self) -> list[Any]:
        return list(self.known)


def embedded(report: Report) -> str:
    """Return the JSON of all runs of a report, safe within a script element."""
    text = json.dumps(_document(report), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c")  # neither </script> nor <!-- can stand in it


def measured(report: Report) -> Values:
    """Return every value that a table of the report is computed from."""
    values: Values = {}
    for one in (one for section in report.sections for row in section.table.rows for one in row.measures):
        for seed, value in one.values.items():
            tasks = values.setdefault(one.runs[seed], {})
            tasks.setdefault(f"{one.task}@{one.protocol}", {})[one.metric] = value
    return values


def _document(report: Report) -> dict[str, Any]:
    words, metrics, groups, protocols = _Places(), _Places(), _Places(), _Places()
    values = measured(report)
    runs, configs = {}, {}
    for run in report.runs.values():
        group = groups(run.group) if run.config else -1
        configs[group] = run.config
        own = values.get(run.run, {})
        found = [
            [protocols(name), *_result(run, name, words), *_pairs(own[name], metrics)]
            for name in run.results if name in own
        ]  # fmt: skip
        runs[run.run] = [group, run.seed, *_training(run, words), found]
    configs.pop(-1, None)
    base = _commonest(configs.values())
    return {
        "words": words.all(), "metrics": metrics.all(), "base": base,
        "groups": [_differences(base, configs[place]) for place in range(len(configs))],
        "protocols": [[name, _settings(report.runs.values(), name)] for name in protocols.all()], "runs": runs,
    }  # fmt: skip


def _training(run: Run, words: _Places) -> list[Any]:
    done = run.training
    command = run.command.replace(f" seed={run.seed}", f" seed={OWN}", 1)
    return [words(command), done.get("seconds"), words(done.get("device") or ""), words(run.commit),
            _moment(done.get("finished", ""))]  # fmt: skip


def _result(run: Run, name: str, words: _Places) -> list[Any]:
    result = run.results[name]
    command = run.commands.get(name, "").replace(run.run, OWN, 1)
    return [words(command), result["cost"]["seconds"], words(result["cost"].get("device") or ""),
            words(commit(result)), _moment(result["created"])]  # fmt: skip


def commit(result: Result) -> str:
    """Return the commit that computed a result, + where it had changes that were not committed; empty: unknown."""
    found = str(result["provenance"].get("commit") or "")[:10]
    return f"{found}+" if found and result["provenance"].get("dirty") else found


def _moment(text: Any) -> Any:
    """Return a time as a number of seconds, or as it stands where it is none."""
    try:
        moment = datetime.fromisoformat(text)
        return int(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp())
    except (TypeError, ValueError):
        return text


def _pairs(values: Mapping[str, float], metrics: _Places) -> Iterator[Any]:
    for metric, value in values.items():
        yield metrics(metric)
        yield value


def _commonest(configs: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return of each name that every configuration has the value that most have."""
    counts: dict[str, Counter[str]] = {}
    values: dict[str, Any] = {}
    for config in configs:
        for name, value in config.items():
            counts.setdefault(name, Counter())[text := repr(value)] += 1
            values[text] = value
    return {name: values[count.most_common(1)[0][0]] for name, count in counts.items()}


def _differences(base: Mapping[str, Any], config: Mapping[str, Any]) -> list[Any]:
    changed = {name: value for name, value in config.items() if repr(value) != repr(base[name])}
    return [changed, [name for name in base if name not in config]]


def _settings(runs: Iterable[Run], name: str) -> dict[str, Any]:
    """Return a protocol's settings, by dotted name."""
    result = next(run.results[name] for run in runs if name in run.results)
    own = leaves(result.get("settings") or {})
    return {key: value for key, value in own if key.rpartition(".")[2] not in FREE}
