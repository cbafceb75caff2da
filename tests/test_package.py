"""What is shipped: a wheel with smog alone, its data and licences; commands that answer without heavy imports."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    out = tmp_path_factory.mktemp("wheel")
    source = out / "source"
    tracked = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout: there is no list of the project's files to build from")
    for name in tracked.stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    [path] = out.glob("*.whl")
    return zipfile.ZipFile(path).namelist()


def test_a_wheel_contains_smog_alone(wheel: list[str]) -> None:
    assert {name.split("/")[0] for name in wheel if ".dist-info/" not in name} == {"smog"}


def test_a_wheel_contains_what_smog_needs(wheel: list[str]) -> None:
    needed = {path.relative_to(ROOT).as_posix() for path in (ROOT / "smog").rglob("*") if path.is_file()}
    needed = {name for name in needed if "__pycache__" not in name}
    assert needed <= set(wheel)
    assert {"smog/data/garments/garments.npz", "smog/data/garments/LICENSE", "smog/conf/recipe/demo.yaml"} <= needed


def test_every_dependency_has_an_exact_pin() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {_name(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    extras = [name for names in project["optional-dependencies"].values() for name in names]
    extras = [name for name in extras if not name.startswith(f"{project['name']}[")]  # an extra that contains another
    assert {_name(line) for line in [*project["dependencies"], *extras]} <= pinned


def _name(requirement: str) -> str:
    return re.split("[<>=;]", requirement)[0].strip().lower().replace("_", "-")


def test_recipes_leave_the_backbone_to_its_group() -> None:
    """A recipe is composed last: a backbone key in it would silently win over backbone=NAME on the command line."""
    import yaml

    for path in (ROOT / "smog" / "conf" / "recipe").glob("*.yaml"):
        assert "backbone" not in yaml.safe_load(path.read_text())
