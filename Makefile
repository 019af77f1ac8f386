# demo · test · serve · bench · lint · compose-test: each makes .venv when it is missing.
PYTHON ?= python3
BIN := .venv/bin
COMPOSE ?= $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)

.PHONY: demo test serve bench lint oracles compose-test clean

demo: .venv/ready
	@$(BIN)/looprnn demo

test: .venv/ready
	@$(BIN)/python -m pytest

serve: .venv/ready
	@$(BIN)/python build_engines.py
	@$(BIN)/looprnn serve

# Parity first, then time: what serving adds to the engine, and looprnn beside what a user would pick instead.
bench: .venv/ready
	@$(BIN)/pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[bench]'
	@$(BIN)/python bench/lstm_random.py
	@$(BIN)/python bench/serving.py
	@$(BIN)/python bench/streams.py

lint: .venv/ready
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

# PyTorch and Keras, with which the tests compare, and what draws plots: large (on Linux the default PyTorch brings
# CUDA with it), so only where asked for. Without them those tests are skipped.
oracles: .venv/ready
	@$(BIN)/pip install --quiet -c constraints.txt -e '.[oracles,bench]'

# The cpu profile, for real: build, serve, test, tear down; the exit status is the tests'.
compose-test:
	@$(COMPOSE) --profile cpu build test-cpu && $(COMPOSE) --profile cpu run --rm test-cpu; \
	status=$$?; $(COMPOSE) --profile cpu down --volumes; exit $$status

clean:
	rm -rf .venv build

.venv/ready: pyproject.toml client/pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e client -e '.[onnxruntime,embedded,rtx,fused,keras,test]'
	@touch $@
