PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test lint bench install clean

# A grid over the number of groups on the embedded images, then its report.
demo: $(INSTALLED)
	$(BIN)/python ablations/run.py grid=num_groups recipe=demo store=runs tasks=[knn,linear,diagnostics]
	$(BIN)/python reports/build.py store=runs out=reports/output

test: $(INSTALLED)
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/python tests/bench/run.py

install: $(INSTALLED)

# torch and torchvision go in by one command, so that pip picks a pair that fits.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch torchvision
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
