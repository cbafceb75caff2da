"""Installs the programs that some tests of the reports drive, where this machine can have them; else those tests skip.

``python tests/debian.py`` is what CI calls; it needs no package of the project.
"""

import os
import shutil
import subprocess
import sys

PROGRAMS = ("chromium", "chromedriver", "pdflatex", "pdffonts")
PACKAGES = "chromium chromium-driver texlive-latex-base texlive-latex-recommended texlive-latex-extra poppler-utils"
COMMANDS = ("apt-get update -qq", f"apt-get install -y -qq --no-install-recommends {PACKAGES}")


def install() -> str:
    """Install what is missing; return why something is missing after all, or nothing."""
    if not _missing():
        return ""
    if sys.platform != "linux" or os.geteuid() or not shutil.which("apt-get"):
        return _missing()
    settings = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in COMMANDS:
        done = subprocess.run(command.split(), env=settings, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"{_missing()}, and `{command}` failed: {' '.join(done.stderr.split())[-200:]}"
    return _missing()


def _missing() -> str:
    absent = [program for program in PROGRAMS if not shutil.which(program)]
    return f"missing: {', '.join(absent)}" if absent else ""


if __name__ == "__main__":
    sys.exit(install() or 0)
