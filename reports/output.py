"""The files of a report: what each holds, which digest it carries, and which can stay as they are."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from reports import page, reproduce, writers
from reports.collect import Collected, of_record
from reports.latex import to_latex
from reports.markup import to_html
from reports.page import whole_digest
from reports.report import Picture, Report, Section
from smog.errors import RunError, UsageError
from smog.identity import digest
from smog.store import write_atomically

if TYPE_CHECKING:
    from reports.figures import Drawing

MANIFEST = "report.json"
KINDS = ("pdf", "svg", "png")
NOT_DRAWING = (
    "build",
    "check",
    "costs",
    "embedded",
    "latex",
    "markup",
    "output",
    "page",
    "reproduce",
    "stamp",
    "writers",
)
FEW = 6  # drawings that are not worth a second process


@dataclass(frozen=True)
class Output:
    """One file: its bytes, and the digest of the rows, or of the figure, that it shows."""

    content: bytes
    digest: str


Outputs = dict[str, Output]
Files = dict[str, bytes]  # of one figure, by kind
Job = tuple["Drawing", str]  # what is to be drawn, and the digest of all that it shows


def outputs(report: Report, venue: str, grids: Sequence[str] = ()) -> Outputs:
    """Return every file of a report whose figures are drawn, by its path; the page and the manifest last."""
    found: Outputs = {}
    for section in report.sections:
        figures = {
            f"figures/{picture.name}.{kind}": Output(data, picture.digest)
            for picture in section.pictures
            for kind, data in picture.files.items()
        }
        own = tables(section) | figures
        if twice := sorted(own.keys() & found.keys()):
            raise UsageError(
                f"{twice[0]} would be of two tables, one of them {section.name!r}; rename one of the grids"
            )
        found |= own
    found |= texts(report)
    text, drawn = page.text_of(report)
    found["index.html"] = Output(page.filled(text, drawn), digest(text))
    content = {"schema": 1, "drawn_by": _drawn_by(venue), "grids": list(grids), **manifest(report, found)}
    found[MANIFEST] = Output(
        (json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode(), whole_digest(report)
    )
    return found


def tables(section: Section) -> Outputs:
    """Return the files of a section's table."""
    drawn = {"md": writers.to_markdown, "tex": to_latex, "csv": writers.to_csv, "html": to_html}
    table = section.table
    texts = {kind: draw(table) for kind, draw in drawn.items()}
    texts["md"] += f"\n<!-- rows sha256:{table.digest} -->\n"
    return {f"tables/{section.name}.{kind}": Output(text.encode(), table.digest) for kind, text in texts.items()}


def texts(report: Report) -> Outputs:
    """Return the files that tell how to get the numbers again."""
    written = {"REPRODUCE.md": reproduce.to_reproduce(report), "model-index.yaml": reproduce.to_model_index(report)}
    return {path: Output(text.encode(), whole_digest(report)) for path, text in written.items()}


def manifest(report: Report, files: Outputs) -> dict[str, Any]:
    """Return what report.json says: each table's cells with the values behind them, each file's digests, and what could
    not be drawn."""
    return {
        "tables": {section.name: shown(section) for section in report.sections},
        "files": {path: {"rows": one.digest, "sha256": sha256(one.content)} for path, one in files.items()},
        "undrawn": {name: list(why) for section in report.sections for name, why in section.undrawn.items()},
    }


def shown(section: Section) -> dict[str, Any]:
    """Return a table as the manifest keeps it: a row's digest, the text of each cell, and every value by run."""
    titles = [column.title for column in section.table.columns]
    rows = [
        {
            "row": row.label,
            "digest": row.digest,
            "cells": [cell.text for cell in row.cells],
            "marks": [" ".join(cell.marks) for cell in row.cells],
            "values": {
                f"{one.task}@{one.protocol}.{one.metric}": {one.runs[seed]: value for seed, value in one.values.items()}
                for one in row.measures
            },
        }
        for row in section.table.rows
    ]
    return {"digest": section.table.digest, "caption": section.table.caption, "columns": titles, "rows": rows}


def sha256(content: bytes) -> str:
    """Return the SHA-256 of a file's bytes as hex digits."""
    return hashlib.sha256(content).hexdigest()


# ---- figures ----


def with_pictures(store: Path, collected: Collected, venue: str, out: Path) -> Report:
    """Return the report with its figures: those that are in ``out`` as they were drawn stay, the others are drawn. What
    can't be drawn any more, since its images are gone or have changed, becomes a note of its section."""
    sections = list(_illustrated(store, collected))
    jobs = [job for _, own in sections for job in own]
    files: list[Files | str] = [_kept(out, drawing.name, own, venue) for drawing, own in jobs]
    missing = [number for number, found in enumerate(files) if not found]
    drawn = _draw_all([jobs[number] for number in missing], venue, collected.report.draft)
    for number, found in zip(missing, drawn, strict=True):
        files[number] = found
    return _finished(collected.report, sections, files)


def as_drawn(store: Path, collected: Collected, out: Path) -> Report:
    """Return the report with the digests of its figures and no bytes of them; what the last build could not draw of the
    same inputs is not drawn here either."""
    sections = list(_illustrated(store, collected))
    known = {name: tuple(why) for name, why in read_manifest(out).get("undrawn", {}).items()}
    files: list[Files | str] = []
    for drawing, own in (job for _, jobs in sections for job in jobs):
        digest_then, reason = known.get(drawing.name, ("", ""))
        files.append(reason if digest_then == own else dict.fromkeys(KINDS, b""))
    return _finished(collected.report, sections, files)


def _finished(report: Report, sections: Sequence[tuple[Section, list[Job]]], files: Sequence[Files | str]) -> Report:
    found = iter(files)
    finished = [_with_files(section, list(zip(jobs, found, strict=False))) for section, jobs in sections]
    return dataclasses.replace(report, sections=tuple(finished))


def _with_files(section: Section, drawn: Sequence[tuple[Job, Files | str]]) -> Section:
    pictures = [
        Picture(drawing.name, drawing.title, drawing.words, own, files)
        for (drawing, own), files in drawn
        if not isinstance(files, str)
    ]
    undrawn = {drawing.name: (own, why) for (drawing, own), why in drawn if isinstance(why, str)}
    notes = [f"{drawing.title}: {why}" for (drawing, _), why in drawn if isinstance(why, str)]
    return dataclasses.replace(section, pictures=tuple(pictures), notes=(*section.notes, *notes), undrawn=undrawn)


def _illustrated(store: Path, collected: Collected) -> Iterator[tuple[Section, list[Job]]]:
    """Yield each section with its drawings and their digests."""
    from reports import figures, sheets

    for section in collected.report.sections:
        record = collected.records.get(section.name) if section.kind == "grid" else None
        if record is None:
            yield section, []
            continue
        off = collected.report.dropped
        results = {key: one for key, one in of_record(record, collected.results).items() if key[0] not in off}
        found = figures.drawings(store, record, section.table, section.name, results)
        more, notes = sheets.drawings(store, record, results, section.name)
        jobs = [(drawing, _figure_digest(drawing, collected.report.draft)) for drawing in (*found, *more)]
        yield dataclasses.replace(section, notes=tuple(notes)), jobs


def _figure_digest(drawing: Drawing, draft: bool) -> str:
    """Return twelve hex digits over all that a figure shows."""
    return digest([drawing.name, drawing.title, drawing.words, drawing.inputs, draft])


@cache
def _drawn_by(venue: str) -> str:
    """Return twelve hex digits over what draws the figures: another version draws other bytes of the same numbers."""
    modules = [path for path in sorted(Path(__file__).parent.glob("*.py")) if path.stem not in NOT_DRAWING]
    return digest([venue, version("matplotlib"), [sha256(path.read_bytes()) for path in modules]])


def _kept(out: Path, name: str, own: str, venue: str) -> Files:
    """Return the files of a figure that were drawn before of the same inputs and have not changed since, else none."""
    known = read_manifest(out)
    paths = {kind: f"figures/{name}.{kind}" for kind in KINDS}
    entries = {kind: known.get("files", {}).get(path, {}) for kind, path in paths.items()}
    if known.get("drawn_by") != _drawn_by(venue) or any(entry.get("rows") != own for entry in entries.values()):
        return {}
    files = {kind: (out / path).read_bytes() for kind, path in paths.items() if (out / path).is_file()}
    intact = len(files) == len(KINDS) and all(sha256(files[kind]) == entries[kind].get("sha256") for kind in KINDS)
    return files if intact else {}


_manifests: dict[tuple[Path, int], dict[str, Any]] = {}


def read_manifest(out: Path) -> dict[str, Any]:
    """Return what the last build wrote about itself, nothing where there was none or it can't be read."""
    path = out / MANIFEST
    try:
        key = path, path.stat().st_mtime_ns
        if key not in _manifests:
            _manifests[key] = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    found = _manifests[key]
    whole = isinstance(found, dict) and all(isinstance(found.get(name, {}), dict) for name in ("tables", "files"))
    return found if whole else {}


_jobs: list[Job] = []


def _draw_all(jobs: Sequence[Job], venue: str, draft: bool) -> Iterator[Files | str]:
    """Yield the files of each drawing, or why there are none, in order; many are drawn in two forked processes."""
    if len(jobs) < FEW or (os.cpu_count() or 1) < 2:
        yield from (_draw(job, venue, draft) for job in jobs)
        return
    _jobs[:] = jobs  # the forked processes find them here: a drawing holds functions, which can't be sent
    with multiprocessing.get_context("fork").Pool(2) as pool:
        yield from pool.imap(_numbered, [(number, venue, draft) for number in range(len(jobs))], chunksize=2)
    _jobs.clear()


def _numbered(job: tuple[int, str, bool]) -> Files | str:
    number, venue, draft = job
    return _draw(_jobs[number], venue, draft)


def _draw(job: Job, venue: str, draft: bool) -> Files | str:
    from reports import plots

    drawing, own = job
    with plots.venue(venue):
        try:
            figure = drawing.draw()
        except (UsageError, RunError, ImportError) as error:
            return " ".join(str(error).split())
        if draft:
            figure.text(0.5, 0.5, "DRAFT", ha="center", va="center", rotation=25, size=40, alpha=0.15)
        return {kind: plots.save(figure, kind, f"rows sha256:{own}") for kind in KINDS}


# ---- on disk ----


def write(out: Path, files: Mapping[str, Output]) -> int:
    """Write what differs from what is there, each file atomically and the page behind all that it names; remove what
    the last build wrote and this one does not. Return how many files changed."""
    old = set(read_manifest(out).get("files", {}))
    changed = 0
    try:
        for path, one in files.items():
            if not _same(out / path, one.content):
                write_atomically(out / path, _writer(one.content))
                changed += 1
        for path in sorted(old - set(files)):
            if not Path(path).is_absolute() and ".." not in Path(path).parts:
                (out / path).unlink(missing_ok=True)
                changed += 1
    except OSError as error:
        raise UsageError(f"cannot write to {out}: {error}") from None
    return changed


def _same(path: Path, content: bytes) -> bool:
    return path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content


def _writer(content: bytes) -> Any:
    def into(file: IO[bytes]) -> None:
        file.write(content)

    return into
