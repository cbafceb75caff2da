"""Does every output still match the store? Row by row what is stale, line by line what was edited."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from reports.collect import Collected
from reports.output import MANIFEST, Output, as_drawn, manifest, read_manifest, sha256, shown, tables, texts
from reports.page import text_of
from reports.report import Report
from smog.errors import UsageError
from smog.identity import digest

AROUND = 30  # characters of a line that are shown on both sides of where it differs


def problems(store: Path, collected: Collected, out: Path) -> Iterator[str]:
    """Yield a line for everything in ``out`` that the store does not say: stale cells with their old and new text and
    the runs whose values changed, edited lines, files that are missing, or of no section.

    Tables and texts are written again and compared byte by byte; figures and the page, which has them, by the digest of
    what they show and of their bytes, since another version of matplotlib draws other bytes of the same numbers.
    """
    known = read_manifest(out)
    if not known:
        raise UsageError(f"no {MANIFEST} in {out}: build the report before it is checked")
    report, files = as_drawn(store, collected, out), known.get("files", {})
    expected = {path: one for section in report.sections for path, one in tables(section).items()} | texts(report)
    drawn = {
        f"figures/{one.name}.{kind}": one.digest
        for section in report.sections
        for one in section.pictures
        for kind in one.files
    } | {"index.html": digest(text_of(report)[0])}
    found = list(_stale_tables(report, known.get("tables", {})))
    for path, one in expected.items():
        found += _text(out, path, one, files.get(path, {}))
    for path, own in drawn.items():
        found += _drawn(out, path, own, files.get(path, {}))
    for path in sorted(set(files) - {*expected, *drawn}):
        found.append(f"stale: {path} is of nothing that the store has")
    yield from found
    now = manifest(report, expected)
    now["files"] |= {path: files.get(path) for path in drawn}
    if not found and known | now != known:
        yield f"edited: {MANIFEST}"


def _stale_tables(report: Report, known: Mapping[str, Any]) -> Iterator[str]:
    now = {section.name: shown(section) for section in report.sections}
    for name in sorted(set(known) - set(now)):
        yield f"stale: table {name}: the store has no such table any more"
    for name, table in now.items():
        if name not in known:
            yield f"stale: table {name} is new"
        elif known[name]["digest"] != table["digest"]:
            yield from _stale_rows(name, known[name], table)


def _stale_rows(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    before, after = (dict(_named(table["rows"])) for table in (old, new))
    for row in (*after, *(row for row in before if row not in after)):
        if row not in before or row not in after:
            yield f"stale: table {name}, row {row}: {'new' if row in after else 'no longer there'}"
        elif before[row]["digest"] != after[row]["digest"]:
            yield from _stale_cells(f"table {name}, row {row}", before[row], after[row], new["columns"])
    for part in ("caption", "columns"):
        if old[part] != new[part]:
            yield f"stale: table {name}: another {part}"


def _named(rows: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each row with its label; of several rows of one label the second and the later are numbered."""
    seen: Counter[str] = Counter()
    for row in rows:
        seen[row["row"]] += 1
        yield row["row"] + (f" ({seen[row['row']]})" if seen[row["row"]] > 1 else ""), row


def _stale_cells(where: str, old: Mapping[str, Any], new: Mapping[str, Any], columns: list[str]) -> Iterator[str]:
    why = "; ".join(_changed(old["values"], new["values"]))
    said = list(_differing_cells(old, new, columns))
    if not said:
        yield f"stale: {where}: the text of its cells is the same" + (
            f", what is behind it is not ({why})" if why else ""
        )
    for words in said:
        yield f"stale: {where}, {words}" + (f" ({why})" if why else "")


def _differing_cells(old: Mapping[str, Any], new: Mapping[str, Any], columns: list[str]) -> Iterator[str]:
    before, after = (zip(row["cells"], row.get("marks", row["cells"]), strict=False) for row in (old, new))
    for title, (text, marks), (text_now, marks_now) in zip(columns, before, after, strict=False):
        if text != text_now:
            yield f"{title}: {text or 'nothing'} is now {text_now or 'nothing'}"
        elif marks != marks_now:
            yield f"{title}: {text} was {marks or 'not marked'}, and is now {marks_now or 'not marked'}"


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for metric in (*new, *(metric for metric in old if metric not in new)):
        before, after = old.get(metric, {}), new.get(metric, {})
        for run in (*after, *(run for run in before if run not in after)):
            if before.get(run) != after.get(run):
                yield f"{metric} of run {run}: {before.get(run, 'nothing')} is now {after.get(run, 'nothing')}"


def _text(out: Path, path: str, one: Output, entry: Mapping[str, Any]) -> Iterator[str]:
    if not (out / path).is_file():
        yield f"missing: {path}"
        return
    content = (out / path).read_bytes()
    if content == one.content:
        return
    if sha256(content) == entry.get("sha256"):
        yield f"stale: {path}"
        return
    found, wanted = (text.decode(errors="backslashreplace").split("\n") for text in (content, one.content))
    for number, words in _differing(wanted, found):
        yield f"edited: {path}, line {number}: {words}"


def _differing(wanted: list[str], found: list[str]) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file that differ from what they should be: their numbers from 1, and how."""
    matcher = difflib.SequenceMatcher(None, wanted, found, autojunk=False)
    for kind, first, last, start, end in matcher.get_opcodes():
        if kind == "delete":
            yield start + 1, "a line that was here is gone"
        elif kind != "equal":
            for place in range(start, end):
                own = wanted[first + place - start] if first + place - start < last else ""
                yield place + 1, _excerpts(own, found[place])


def _excerpts(wanted: str, found: str) -> str:
    """Return where two lines begin to differ, some words of each."""
    pairs = zip(wanted, found, strict=False)
    same = next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(wanted), len(found)))
    own, other = (line[max(0, same - AROUND) : same + AROUND] or "nothing" for line in (wanted, found))
    return f"{other!r} where the store gives {own!r}"


def _drawn(out: Path, path: str, own: str, entry: Mapping[str, Any]) -> Iterator[str]:
    if not (out / path).is_file():
        yield f"missing: {path}"
    elif entry.get("rows") != own:
        yield f"stale: {path}: what it shows has changed"
    elif sha256((out / path).read_bytes()) != entry.get("sha256"):
        yield f"edited: {path}"
