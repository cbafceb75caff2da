import itertools
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.patches import PathPatch
from matplotlib.transforms import Bbox

from reports import plots, sheets
from smog.config import dump, with_runtime
from smog.data import images as images_module
from smog.data import sources
from smog.data.sources import open_source, with_fingerprint
from smog.errors import UsageError
from smog.store import result_path, write_atomically, write_json

ROOT = Path(__file__).parents[1]
NEIGHBOURS = [{"query": 0, "nearest": [3, 7, 2]}, {"query": 20, "nearest": [5, 39, 4]}]
GROUPS = [{"group": 11, "count": 9, "nearest": [3, 8, 6]}, {"group": 2, "count": 3, "nearest": [10, 31, 20]}]


@dataclass
class Pictures:
    """Images that are not on a disk."""

    images: list
    labels: np.ndarray
    classes: list

    def __getitem__(self, index):
        return self.images[index]


def noise(count=40, height=16, width=16, classes=("cat", "dog", "owl")):
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (height, width, 3), np.uint8) for _ in range(count)]
    return Pictures(images, np.arange(count) % len(classes), list(classes))


def result(**more):
    return {
        "run_id": "a" * 12, "protocol": "cccccccc", "inputs": {"data": "made", "val": 40}, "neighbours": NEIGHBOURS,
        "groups": GROUPS, **more,
    }  # fmt: skip


def located(figure, picture):
    """Where a picture stands on the sheet, as pixels of its left upper corner; it must be there once, as it is."""
    [image] = figure.axes[0].images
    canvas, (height, width) = image.get_array(), picture.shape[:2]
    found = [
        (x, y)
        for y, x in np.argwhere((canvas[..., :3] == picture[0, 0]).all(axis=-1))
        if np.array_equal(canvas[y : y + height, x : x + width, :3], picture)
    ]
    assert len(found) == 1
    return found[0]


def framed(figure, colour):
    """The middle of each frame of a colour, in pixels of the sheet."""
    ax = figure.axes[0]
    [patch] = [one for one in ax.patches if isinstance(one, PathPatch) and to_hex(one.get_edgecolor()) == colour]
    corners = patch.get_path().vertices.reshape(-1, 5, 2)[:, :4]
    return patch, {tuple(np.round(one.mean(axis=0)).astype(int).tolist()) for one in corners}


def middles(figure, pictures, indices):
    return {(x + 8, y + 8) for x, y in (located(figure, pictures[index]) for index in indices)}


# ---- what is drawn ----


@pytest.mark.parametrize(
    ("draw", "lines"),
    [
        (sheets.neighbours_figure, [[0, 3, 7, 2], [20, 5, 39, 4]]),
        (sheets.groups_figure, [[3, 8, 6], [10, 31, 20]]),
    ],
)
def test_each_picture_stands_in_its_line_in_order(draw, lines):
    pictures = noise()
    figure = draw(result(), pictures)
    places = [[located(figure, pictures[index]) for index in line] for line in lines]
    for line in places:
        assert [x for x, _ in line] == sorted({x for x, _ in line})
        assert len({y for _, y in line}) == 1
    assert places[0][0][1] < places[1][0][1]
    steps = np.diff([x for x, _ in places[0]])
    assert (steps[0] > steps[1]) == (draw is sheets.neighbours_figure)  # a gap behind the query


@pytest.mark.parametrize(
    ("draw", "alike", "apart"),
    [(sheets.neighbours_figure, [3, 5], [7, 2, 39, 4]), (sheets.groups_figure, [3, 6, 10, 31], [8, 20])],
)
def test_frames_tell_the_class_with_and_without_colours(draw, alike, apart):
    pictures = noise()  # of class 0, 1, 2, 0, 1, 2 and so on
    figure = draw(result(), pictures)
    (same, found), (other, strange) = framed(figure, plots.BLUE), framed(figure, plots.ORANGE)
    assert found == middles(figure, pictures, alike)
    assert strange == middles(figure, pictures, apart)
    assert same.get_linestyle() != other.get_linestyle()


def test_the_query_and_pictures_of_another_class_are_named_beneath():
    pictures = noise()
    figure = sheets.neighbours_figure(result(), pictures)
    names = {text.get_position(): text.get_text() for text in figure.axes[0].texts if text.get_text()}
    assert sorted(names.values()) == sorted(["cat", "dog", "owl", "owl", "cat", "dog"])
    for index in (0, 7, 2, 20, 39, 4):
        x, y = located(figure, pictures[index])
        [name] = [name for (left, low), name in names.items() if left == x + 8 and y + 16 < low < y + 22]
        assert name == pictures.classes[index % 3]


def test_a_line_of_a_group_says_which_how_many_and_of_what():
    pictures = noise()
    figure = sheets.groups_figure(result(), pictures)
    words = [text.get_text() for text in figure.axes[0].texts if "group" in text.get_text()]
    assert words == ["group 11\n9 images\n2 of 3: cat", "group 2\n3 images\n2 of 3: dog"]


def test_a_photograph_is_its_middle_square_made_smaller():
    pictures = noise(height=100, width=300)
    for image in pictures.images:
        image[:, :100], image[:, 200:] = (255, 0, 0), (0, 0, 255)
    figure = sheets.neighbours_figure(result(), pictures)
    expected = cv2.resize(pictures[7][:, 100:200], (sheets.SIDE, sheets.SIDE), interpolation=cv2.INTER_AREA)
    assert located(figure, expected)


def test_a_sheet_is_as_wide_as_the_venues_text_and_has_an_end():
    many = [{"query": index, "nearest": list(range(39))} for index in range(40)]
    pictures = noise()
    for name in ("eccv", "cvpr"):
        with plots.venue(name) as venue:
            figure = sheets.neighbours_figure(result(neighbours=many), pictures)
        assert figure.get_size_inches()[0] == pytest.approx(venue.text)
    _, found = framed(figure, plots.ORANGE)
    assert len({x for x, _ in found}) <= sheets.MOST >= len({y for _, y in found})


def extents(figure):
    """The boxes of all words and frames of a sheet."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    texts = [one.get_window_extent(renderer) for one in figure.axes[0].texts if one.get_text()]
    outlines = [one for one in figure.axes[0].patches if isinstance(one, PathPatch)]
    frames = [figure.axes[0].transData.transform(one.get_path().vertices).reshape(-1, 5, 2) for one in outlines]
    return texts + [Bbox([square.min(axis=0), square.max(axis=0)]) for square in np.concatenate(frames)]


HOSTILE = ["$x^2$ <script>&", "\x00\x1b[31m\udcff\u4e2d", "\n\n" + "long " * 50]


@pytest.mark.parametrize("draw", [sheets.neighbours_figure, sheets.groups_figure])
def test_hostile_names_of_classes_are_only_text(draw):
    eight = {"query": 0, "group": 10**6, "count": 10**6, "nearest": list(range(10, 18))}
    figure = draw(result(neighbours=[eight] * 3, groups=[eight] * 3), noise(classes=HOSTILE))
    svg = plots.save(figure, "svg").decode()
    assert {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(svg).iter()}.isdisjoint({"script"})
    assert plots.save(figure, "pdf").startswith(b"%PDF")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert any("$x^2$" in text for text in texts)
    boxes = extents(figure)
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


# ---- from a store ----


@pytest.fixture
def store(tiny, tmp_path):
    """A store with a grid whose baseline has seeds 0, 2 and 10, all with diagnostics but the first."""
    config = with_fingerprint(tiny("data.size=16"))
    results, runs = {}, {"10": "b" * 12, "2": "a" * 12, "0": "d" * 12}
    for seed, run in runs.items():
        write(tmp_path / run, with_runtime(config, store=str(tmp_path)))
        if seed != "0":
            made = result(run_id=run, inputs={"data": config.data.fingerprint, "val": 40}, seed=int(seed))
            results[run, "diagnostics"] = made
            write_json(result_path(tmp_path / run, "diagnostics", "cccccccc"), made)
    cells = [{"baseline": False, "runs": {"0": "e" * 12}}, {"baseline": True, "runs": runs}]
    return tmp_path, {"grid": "made", "cells": cells, "tasks": {"diagnostics": "cccccccc"}}, results


def write(folder, config):
    write_atomically(folder / "config.yaml", lambda file: file.write(dump(config).encode()))


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_grid_has_the_sheets_of_its_baselines_first_seed_with_a_result(store):
    folder, record, results = store
    before = files(folder)
    drawings, notes = sheets.drawings(folder, record, results, "made-1")
    assert ([one.name for one in drawings], notes) == (["made-1-neighbours", "made-1-groups"], [])
    neighbours, groups = (json.loads(json.dumps(one.inputs)) for one in drawings)
    who = {
        "run": "a" * 12,
        "seed": 2,
        "protocol": "cccccccc",
        "data": results["a" * 12, "diagnostics"]["inputs"]["data"],
    }
    assert neighbours == who | {"neighbours": NEIGHBOURS}
    assert groups == who | {"groups": GROUPS}
    assert all("run aaaaaaaaaaaa, seed 2" in one.words for one in drawings)
    source = open_source(sheets._config_of(folder / ("a" * 12), results["a" * 12, "diagnostics"]).data, "val")
    figure = drawings[0].draw()
    xs = [located(figure, source.read(index))[0] for index in (20, 5, 39, 4)]
    assert xs == sorted(xs)
    assert files(folder) == before, "a report writes nothing into the store"


def test_images_are_opened_only_to_draw(store, monkeypatch):
    def refuse(*_):
        raise AssertionError("an image was opened")

    monkeypatch.setattr(images_module, "open_images", refuse)
    drawings, _ = sheets.drawings(*store, "made")
    with pytest.raises(AssertionError, match="was opened"):
        drawings[0].draw()


def test_without_diagnostics_there_is_no_sheet_and_nothing_heavy_is_imported(store):
    folder, record, _ = store
    code = "import sys; from reports import sheets; from pathlib import Path; import json\n"
    code += (
        f"assert sheets.drawings(Path({str(folder)!r}), json.loads({json.dumps(record)!r}), {{}}, 'x') == ([], [])\n"
    )
    code += "assert not {'torch', 'cv2', 'hydra', 'timm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_run_without_groups_has_one_sheet(store):
    folder, record, results = store
    del results["a" * 12, "diagnostics"]["groups"]
    assert [one.name for one in sheets.drawings(folder, record, results, "x")[0]] == ["x-neighbours"]


DRAW = """
import json, sys, hashlib
from pathlib import Path
from reports import plots, sheets
from smog.store import read_json
store, record = Path(sys.argv[1]), json.loads(sys.argv[2])
results = {("a" * 12, "diagnostics"): read_json(store / ("a" * 12) / "results" / "diagnostics@cccccccc.json")}
for one in sheets.drawings(store, record, results, "x")[0]:
    figure = one.draw()
    for kind in ("pdf", "svg", "png"):
        print(one.name, kind, hashlib.sha256(plots.save(figure, kind)).hexdigest())
"""


def test_files_are_the_same_byte_for_byte_each_time(store):
    folder, record, _ = store
    found = []
    for seed in ("1", "2"):
        command = [sys.executable, "-c", DRAW, str(folder), json.dumps(record)]
        env = {**os.environ, "PYTHONHASHSEED": seed}
        found.append(subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True, text=True).stdout)
    assert found[0] == found[1]
    assert len(set(found[0].split("\n"))) == 7


@pytest.mark.parametrize(
    "more",
    [
        {"neighbours": [{"query": 40, "nearest": [1]}]},
        {"neighbours": [{"query": 0, "nearest": [-1]}]},
        {"neighbours": [{"query": 0, "nearest": ["1"]}]},
        {"neighbours": [{"query": 0, "nearest": 7}]},
        {"neighbours": [{"nearest": [1]}]},
        {"neighbours": {"query": 0}},
        {"groups": [{"group": "<b>", "count": 3, "nearest": [1]}]},
        {"groups": [{"group": 1, "count": None, "nearest": [1]}]},
        {"groups": [{"group": 1, "count": 3, "nearest": [True]}]},
        {"groups": None},
    ],
)
def test_what_is_no_image_of_the_run_gives_a_note_and_no_sheet(store, more):
    folder, record, results = store
    results["a" * 12, "diagnostics"] |= more
    drawings, [note] = sheets.drawings(folder, record, results, "x")
    assert not drawings
    assert re.fullmatch(r"made: no sheets of pictures: the (neighbours|groups) that .* are not of its images", note)


# ---- images that are gone, or others ----


@pytest.fixture
def on_disk(store, tmp_path, tiny):
    """The same store, with the images of its first seed in a folder; a function that says what the sheets are then."""
    folder, record, results = store
    root = tmp_path / "images"
    for split, count in (("train", 4), ("val", 40)):
        for index in range(count):
            path = root / split / f"class{index % 2}" / f"{index:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full((8, 8, 3), 5 * index, np.uint8))
    config = tiny("data=imagefolder", f"data.root={root}", "data.train_images=0", "data.val_images=0")
    config = with_fingerprint(config)
    results["a" * 12, "diagnostics"]["inputs"]["data"] = config.data.fingerprint
    write(folder / ("a" * 12), config)
    return root, config, lambda: sheets.drawings(folder, record, results, "x")


def test_images_in_a_folder_are_drawn(on_disk):
    _, _, drawn = on_disk
    [neighbours, _], notes = drawn()
    assert notes == []
    assert located(neighbours.draw(), np.full((8, 8, 3), 5 * 6, np.uint8))  # class0 comes first: 3 is the file 06


def test_images_that_are_gone_give_a_note(on_disk):
    root, _, drawn = on_disk
    root.rename(root.with_name("elsewhere"))
    assert drawn() == ([], [f"made: no sheets of pictures: data.root={root} does not exist"])


def test_images_that_are_gone_are_not_fetched(on_disk, store):
    root, config, drawn = on_disk
    data = replace(config.data, name="cifar10", root=str(root / "none"), download=True)
    write(store[0] / ("a" * 12), replace(config, data=data))
    assert drawn()[1] == [f"made: no sheets of pictures: data.root={root / 'none'} does not exist; "
                          "data.download=true fetches it"]  # fmt: skip


def test_other_images_in_their_place_are_never_drawn(on_disk, store):
    root, config, drawn = on_disk
    [neighbours, _], _ = drawn()
    (root / "val" / "class0" / "00.png").rename(root / "val" / "class0" / "other.png")
    sources._listing.cache_clear()
    with pytest.raises(UsageError, match="these are other images"):
        neighbours.draw()
    write(store[0] / ("a" * 12), replace(config, data=replace(config.data, fingerprint="0" * 12)))
    assert "are of other images than its config.yaml names" in drawn()[1][0]


def test_a_configuration_that_cant_be_read_gives_a_note(on_disk, store):
    (store[0] / ("a" * 12) / "config.yaml").write_text("[")
    assert "config.yaml can't be read" in on_disk[2]()[1][0]
