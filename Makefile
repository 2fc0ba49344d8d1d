# Every target works alone on a machine with Python >= 3.11 and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RAW := data/easy_vqa/raw
PREPARED := data/easy_vqa/prepared
PARALLEL := -q -n auto --maxprocesses 8
.DELETE_ON_ERROR:
EXTRAS := dev
.PHONY: help setup setup-dev quickstart test test-slow test-faults lint check format docs clean

help:
	@echo "make setup       create $(VENV) and install what training needs (idempotent)"
	@echo "make quickstart  prepare easy-VQA, train an MCAN on it, evaluate it on the test split"
	@echo "make test        the fast tests        make test-slow   the slow ones"
	@echo "make test-faults every write of six commands fails once, and 5,000 malformed files are"
	@echo "                 read (half an hour on two cores)"
	@echo "make lint        format, lint, types, generated docs"
	@echo "make check       make lint, then make test"
	@echo "make docs        regenerate docs/configuration.md and the line counts in README.md"

setup: $(VENV)/.installed
setup-dev: $(VENV)/.installed-dev

$(VENV)/.installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	touch $@

# The dataset is 3.2 MB, fetched from the Python package index as a wheel and read as a zip archive.
$(RAW)/easy_vqa-1.0-py3-none-any.whl: | setup
	$(BIN)/pip download --quiet --disable-pip-version-check --no-deps --dest $(RAW) easy-vqa==1.0

$(PREPARED)/meta.json: $(RAW)/easy_vqa-1.0-py3-none-any.whl
	$(BIN)/python data/easy_vqa/prepare.py --force

quickstart: setup $(PREPARED)/meta.json
	$(BIN)/python train.py configs/easy_vqa/quickstart.yaml --resume
	$(BIN)/python eval.py runs/easy_vqa_quickstart

test: setup-dev
	$(BIN)/pytest $(PARALLEL)

test-slow: setup-dev
	$(BIN)/pytest $(PARALLEL) -m slow

test-faults: setup-dev
	$(BIN)/python tests/faults
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[records,safetensors]'
	$(BIN)/python tests/fuzz/run.py --cases 5000

lint: setup-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python scripts/write_docs.py --check

check: lint test

format: setup-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: setup-dev
	$(BIN)/python scripts/write_docs.py

clean:
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info
