# Uses the active virtual environment, else makes one in .venv.
PYTHON ?= python3
VENV := $(or $(VIRTUAL_ENV),.venv)
PYTEST_ARGS ?=

.PHONY: install test coverage demo docs bench lint clean

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# build/ would carry files that have since been removed into the wheel
install: $(VENV)/bin/python
	@echo "installing crystaldl and what it needs into $(VENV): some minutes the first time"
	rm -rf build
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt ".[train,test]"

# `pytest` rather than `python -m pytest`: the installed package is tested, weights included, not the checkout.
# A process for each core (four at most), each on files of its own. Tests of speed hold on a quiet machine
# (`make bench`); the two that also test something else run here, with nothing beside them.
SIDE_BY_SIDE := --numprocesses logical --maxprocesses 4 --dist loadfile -m "not speed"
test: install
	$(VENV)/bin/pytest $(SIDE_BY_SIDE) $(PYTEST_ARGS)
	$(VENV)/bin/pytest -m speed tests/test_demo.py tests/training

# the lines that the tests reach; those of compiled functions cannot be counted and are left out (setup.cfg)
coverage: install
	$(VENV)/bin/pytest $(SIDE_BY_SIDE) --cov --cov-report= $(PYTEST_ARGS)
	$(VENV)/bin/pytest -m speed tests/test_demo.py --cov --cov-append --cov-report=term --cov-fail-under=85

demo: install
	$(VENV)/bin/python -m crystaldl.cli demo --out demo_output

docs: install
	$(VENV)/bin/python -m sphinx -W --keep-going -q -b html docs docs_output

bench: install
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt ".[bench]"
	$(VENV)/bin/pytest tests/benchmarks $(PYTEST_ARGS)
	$(VENV)/bin/pytest -m speed $(PYTEST_ARGS)

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/lint-imports --config setup.cfg
	$(VENV)/bin/mypy --config-file setup.cfg

clean:
	rm -rf build dist *.egg-info .venv .mypy_cache .coverage demo_output docs_output
