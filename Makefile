# `make` lists the targets. Everything lives in .venv; only Python 3.11+, git and make are needed.

PYTHON ?= python3
VENV := .venv
# Windows keeps programs elsewhere.
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
READY := $(VENV)/.ready
# Test processes side by side; tests limit themselves to two threads each. A file stays in one of them, so that what its
# tests share is made once.
JOBS ?= 2
PAGES := docs/settings.md docs/cli.md

.DEFAULT_GOAL := help
.PHONY: help setup demo miniature test test-all lint types docs docs-check format wheel clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: $(READY) ## make the environment in .venv, or reuse it

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Woodshed needs Python 3.11 or newer; name one with make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV); the first time takes a few minutes."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

demo: $(READY) ## teach the built-in model an instrument, on a CPU: songs, tensors, training, adapter, sound
	$(BIN)/woodshed demo woodshed-demo

# About four minutes on a GPU. To try it: MINIATURE="--songs 64 --base-steps 4 --turbo-steps 4" FIGURES="--count 2 --ways turbo".
miniature: $(READY) ## train the built-in model anew, install it into the package, draw its losses and measure it
	$(BIN)/python -m miniature --output build/miniature $(MINIATURE)
	$(BIN)/python -m miniature.install build/miniature
	$(BIN)/python -m miniature.curves miniature/record/log.jsonl docs/pictures/miniature-loss.svg
	$(BIN)/python -m miniature.figures woodshed/toy/world miniature/record/figures.json $(FIGURES)

test: lint types docs-check $(READY) ## lint, types, docs check and the tests
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not slow and not gpu"

test-all: lint types docs-check $(READY) ## the same with the long tests, and those for a GPU where there is one
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

lint: $(READY) ## style, formatting, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: $(READY) ## mypy --strict
	$(BIN)/mypy

docs: $(READY) ## write the generated pages anew
	$(BIN)/cog -r $(PAGES)

docs-check: $(READY) ## are the generated pages up to date?
	$(BIN)/cog --check $(PAGES)

format: $(READY) ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

wheel: $(READY) ## build the wheel into dist/
	$(BIN)/python -m build --wheel --outdir dist .

clean: ## remove what the targets made, the environment too
	rm -rf $(VENV) dist build woodshed-demo .mypy_cache .ruff_cache .pytest_cache .hypothesis
