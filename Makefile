# The front door. Needs `python3` (3.11+) and `make`; everything else is created inside the checkout.
.DEFAULT_GOAL := help
.PHONY: help demo test lint format docs bench pins clean

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
BENCH  := .venv-bench
ARGS   ?=

export UV_PYTHON_DOWNLOADS := never
export UV_NO_PROGRESS := 1
# uv does not read pip's settings; a machine that reaches packages through PIP_INDEX_URL shall not need a second one.
ifdef PIP_INDEX_URL
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY)  ## run the main job: servers, simulator, collectors, report (ARGS="--seconds 20 --json")
	@$(BIN)/aegis demo $(ARGS)

test: $(READY)  ## run every test against real servers (ARGS="-k limiter")
	@$(BIN)/python -m pytest -n 4 --dist loadfile $(ARGS)

lint: $(READY)  ## ruff, its formatter, and mypy in strict mode
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: $(READY)  ## let ruff format and fix what it can
	@$(BIN)/ruff check --fix-only . && $(BIN)/ruff format .

docs: $(READY)  ## write what is made from the code: .env.example, docs/configuration.md, the types of aegis.sync
	@$(BIN)/aegis config example > .env.example && $(BIN)/aegis config docs > docs/configuration.md
	@$(BIN)/python -m aegis.sync._stub > $(VENV)/sync.pyi && mv $(VENV)/sync.pyi src/aegis/sync/__init__.pyi

bench: $(BENCH)/.ready  ## run the benchmarks side by side with their rivals (ARGS="--smoke")
	@$(BENCH)/bin/python -m benchmarks $(ARGS)

pins: $(READY)  ## renew the pinned and hashed requirements
	@sh requirements/pin.sh $(BIN)/uv

clean:  ## remove what the other targets created
	rm -rf $(VENV) $(BENCH) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): requirements/uv.txt requirements/dev.txt pyproject.toml requirements/venv.sh
	@sh requirements/venv.sh $(PYTHON) $(VENV) requirements/dev.txt

$(BENCH)/.ready: requirements/uv.txt requirements/bench.txt pyproject.toml requirements/venv.sh
	@sh requirements/venv.sh $(PYTHON) $(BENCH) requirements/bench.txt
