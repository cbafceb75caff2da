"""Installs programs that tests drive, where this machine can have them; else those tests skip.

``python tests/debian.py``, which CI calls, installs those of the reports; it needs no package of the project.
"""

import os
import shutil
import subprocess
import sys

PROGRAMS = ("chromium", "chromedriver", "pdflatex", "pdffonts")
PACKAGES = "chromium chromium-driver texlive-latex-base texlive-latex-recommended texlive-latex-extra poppler-utils"


def install() -> str:
    """Install what is missing; return why something is missing after all, or nothing."""
    if _missing() and (failed := apt(PACKAGES)):
        return f"{_missing()}, and {failed}"
    return _missing()


def apt(packages: str) -> str:
    """Install packages of Debian; return why that is not possible here, or nothing."""
    if sys.platform != "linux" or os.geteuid() or not shutil.which("apt-get"):
        return "only root can install packages, with apt-get"
    settings = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in ("apt-get update -qq", f"apt-get install -y -qq --no-install-recommends {packages}"):
        done = subprocess.run(command.split(), env=settings, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"`{command}` failed: {' '.join(done.stderr.split())[-200:]}"
    return ""


def _missing() -> str:
    absent = [program for program in PROGRAMS if not shutil.which(program)]
    return f"missing: {', '.join(absent)}" if absent else ""


if __name__ == "__main__":
    sys.exit(install() or 0)
