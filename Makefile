# Needs Python >= 3.11, a C/C++ compiler, cmake and make; tools/set_up.py says what is missing.
# Pick another Python with PYTHON=…, another llama.cpp build with CMAKE_ARGS=… (e.g. -DGGML_CUDA=on).

PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && exit; \
	done; echo python3)
BIN := .venv/bin
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help set-up set-up-dev run test check format unit chaos soak suites bench lock clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' Makefile | column -t -s '|' 2>/dev/null \
		|| sed -n 's/^\([a-z-]*\):.*## /  make \1  /p' Makefile

set-up: ## create .venv and compile llama.cpp (once, about 6 minutes)
	@$(PYTHON) tools/set_up.py

set-up-dev: ## and install what the tests and checks need
	@$(PYTHON) tools/set_up.py --dev

run: set-up ## start everything on this machine; ARGS="--port 9000" passes flags
	@exec $(BIN)/keepwarm up $(ARGS)

test: check ## check, then every test
	$(BIN)/pytest $(ARGS)

unit: set-up-dev ## only the tests without I/O
	$(BIN)/pytest tests/unit $(ARGS)

check: set-up-dev ## lint, format, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: set-up-dev ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

chaos: set-up-dev ## kill everything at random for a while; ARGS="--kills 500" for longer
	$(BIN)/python -m tests.chaos $(ARGS)

soak: set-up-dev ## half an hour of many models in little memory; ARGS="--minutes 3"
	$(BIN)/python -m benchmarks soak $(ARGS)

suites: set-up-dev ## run suites that others wrote against a real Keepwarm; ARGS="node" for one
	$(BIN)/python -m suites $(ARGS)

bench: set-up-dev ## measure this machine; ARGS is passed on
	$(BIN)/python -m benchmarks $(ARGS)

UV_COMPILE = uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-annotate --no-header

lock: ## renew the lock files (needs uv)
	$(UV_COMPILE) --group build pyproject.toml -o requirements.lock
	$(UV_COMPILE) --group build --group dev --constraint requirements.lock pyproject.toml -o requirements-dev.lock
	echo 'pip>=26' | $(UV_COMPILE) - -o tools/pip.lock
	for suite in suites/*/requirements.in benchmarks/*/requirements.in; do $(UV_COMPILE) $$suite -o $${suite%.in}.txt; done

clean: ## remove .venv and every cache of the tools
	rm -rf .venv .suites suites/node/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
