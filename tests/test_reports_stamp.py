import json
import os

import pytest
from made_store import TASKS, cell, record, run_id

from reports import build as entry
from reports.spent import spent
from reports.stamp import sources
from smog.attempts import attempt
from smog.store import result_path, write_grid

KNN = {"knn": TASKS["knn"]}


@pytest.fixture
def store(tmp_path):
    cells = [cell(tmp_path / "store", "a", 1, {"knn": [50.0, None]}, baseline=True)]
    write_grid(tmp_path / "store", record(cells, "one", tasks=KNN))
    return tmp_path / "store"


def build(store, capsys):
    capsys.readouterr()
    assert entry.main([f"store={store}", f"out={store.parent / 'out'}", "draft=true"]) == 0
    return capsys.readouterr().out.splitlines()


def test_what_changes_while_it_is_built_is_found_the_next_time(store, capsys, monkeypatch):
    path = result_path(store / run_id("a", 0), "knn", TASKS["knn"])
    collected = entry._collected

    def slow(request):
        found = collected(request)
        path.write_text(path.read_text().replace("50.0", "77.0"))
        return found

    monkeypatch.setattr(entry, "_collected", slow)
    build(store, capsys)
    monkeypatch.undo()
    build(store, capsys)
    assert "77.0" in (store.parent / "out" / "tables" / "one.csv").read_text()


def test_an_attempt_that_ends_is_found(store, capsys):
    seen = []

    def fail():
        build(store, capsys)
        seen.extend([(store.parent / "out" / "index.html").read_text(), sources(store, "")])
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError), attempt(store / run_id("a", 1), f"knn@{TASKS['knn']}"):
        fail()
    assert "running" in seen[0].partition("Missing results")[2]
    assert sources(store, "") != seen[1]
    build(store, capsys)
    assert "no memory" in (store.parent / "out" / "index.html").read_text()


def test_what_runs_may_end_without_a_word(store, capsys):
    """Its process is gone and no file tells: so nothing is taken for unchanged while a result is on its way."""
    folder = store / run_id("a", 1)
    with attempt(folder, f"knn@{TASKS['knn']}"):
        build(store, capsys)
        (path,) = (folder / "attempts" / f"knn@{TASKS['knn']}").glob("*.json")
        left = json.loads(path.read_text())
    left["owner"]["born"] = "0"
    os.utime(path, None)
    path.write_text(json.dumps(left))
    build(store, capsys)
    page = (store.parent / "out" / "index.html").read_text()
    assert "it ended without a word" in page
    assert (spent(folder).failed, spent(folder).attempts) == (1, 1)


def test_a_link_that_leads_nowhere_hides_no_change(store):
    folder = store / run_id("a", 0)
    (folder / "gone").symlink_to(folder / "nowhere")
    before = sources(store, "")
    (folder / "env.json").write_text("{}")
    assert sources(store, "") != before


def test_a_stamp_that_is_damaged_is_none(store, capsys):
    build(store, capsys)
    for content in ("[]", "{}", "{"):
        (store.parent / "out" / ".stamp").write_text(content)
        assert "nothing has changed" in build(store, capsys)  # since all is written as it was
