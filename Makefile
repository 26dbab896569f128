# make demo    validate this machine's candidates and write an HTML report
# make test    lint, types, tests: no GPU, no flashinfer, no network beyond package installation
# make test-flashinfer    the adapters against the real flashinfer-python, sglang and vllm (about 2 GB to install)
# make test-versions    the interpreted kernel with every pair of package versions that it is said to run with, an hour
# make test-oldest    the tests on torch 2.8, the oldest supported release (about 8 GB: its CUDA build)
# make test-browser    the reports in a headless Chromium (apt-get install chromium, or CHROMIUM=/path/to/it)
# make test-cluster    runs on a Ray cluster of two nodes of this machine, one of which is killed, three minutes
# make test-install    the wheel with each extra in an environment of its own (up to 3 GB at a time, ten minutes)
# make screenshots    the pictures of the pages in docs, in the same Chromium
# make schema    docs/record.schema.json from the types of the record
# make site    the documents as a site, in out/site
# make test-all    the long sweeps, test-cluster and test-install, at most an hour

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
FLASHINFER_VENV ?= .venv-flashinfer
OLDEST_VENV ?= .venv-oldest
PIP = -m pip install --quiet --disable-pip-version-check -c constraints.txt

# Two workers of one thread each: OpenMP threads of several processes on the same cores only wait for each other.
# The tests start some two hundred Python processes: bytecode is kept, also in images that set PYTHONDONTWRITEBYTECODE.
PYTEST = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
WORKERS ?= 2

.PHONY: demo test test-flashinfer test-versions test-oldest test-browser test-cluster test-install test-all lint schema screenshots site bench clean

$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) torch
	$(BIN)/python $(PIP) -e '.[dev]'
	touch $@

demo: $(BIN)/.installed
	$(BIN)/harness check --out out/demo

# Lint and types run beside the tests: mypy alone leaves a core idle for a quarter of a minute.
test: $(BIN)/.installed
	@$(MAKE) --no-print-directory lint & lint=$$!; \
	$(PYTEST) -m 'not flashinfer and not long and not browser and not cluster'; tests=$$?; \
	wait $$lint || { echo 'make test: lint or types failed, see above'; exit 1; }; exit $$tests

lint: $(BIN)/.installed
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check .
	$(BIN)/mypy --no-error-summary

$(FLASHINFER_VENV)/bin/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(FLASHINFER_VENV)
	$(FLASHINFER_VENV)/bin/python $(PIP) torch
	$(FLASHINFER_VENV)/bin/python $(PIP) -e '.[dev,cutedsl]'
	# Only the modules that the adapters call are read; the engines' own dependencies would be several GB.
	$(FLASHINFER_VENV)/bin/python $(PIP) --no-deps sglang vllm
	touch $@

test-flashinfer: $(FLASHINFER_VENV)/bin/.installed
	OMP_NUM_THREADS=1 $(FLASHINFER_VENV)/bin/python -m pytest -n $(WORKERS) -m 'flashinfer and not long'

test-versions: $(FLASHINFER_VENV)/bin/.installed
	OMP_NUM_THREADS=1 $(FLASHINFER_VENV)/bin/python -m pytest -n $(WORKERS) -m 'flashinfer and long'

$(OLDEST_VENV)/bin/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(OLDEST_VENV)
	grep -v '^torch==' constraints.txt > $(OLDEST_VENV)/constraints.txt
	# Without compressed-tensors and torchao, which need a newer torch and would bring it.
	$(OLDEST_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c $(OLDEST_VENV)/constraints.txt \
		torch==2.8.0 -e '.[gsm8k,canary]' jsonschema ml_dtypes msgspec numpy pytest-xdist pyyaml transformers
	touch $@

test-oldest: $(OLDEST_VENV)/bin/.installed
	OMP_NUM_THREADS=1 $(OLDEST_VENV)/bin/python -m pytest -n $(WORKERS) --dist worksteal -m 'not flashinfer and not long and not browser and not cluster'

test-browser: $(BIN)/.installed
	$(BIN)/python $(PIP) -e '.[dev,browser]'
	REQUIRE_BROWSER=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m browser tests/browser

test-cluster: $(BIN)/.installed
	$(BIN)/python $(PIP) -e '.[dev,cluster]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m cluster tests/running

# One at a time: each is an environment with a torch of its own.
test-install: $(BIN)/.installed
	$(BIN)/python -m pytest tests/test_install.py

test-all: $(BIN)/.installed
	$(PYTEST) -m 'not flashinfer and not browser and not cluster' --ignore tests/test_install.py
	$(MAKE) --no-print-directory test-cluster
	$(MAKE) --no-print-directory test-install

schema: $(BIN)/.installed
	$(BIN)/python -m tests.records.make_schema

site: $(BIN)/.installed
	$(BIN)/mkdocs build --quiet

screenshots: $(BIN)/.installed
	$(BIN)/python $(PIP) -e '.[dev,browser]'
	$(BIN)/python -m tests.browser.make_screenshots

bench: $(BIN)/.installed
	$(BIN)/harness bench
	$(BIN)/python benchmarks/bench_examples.py

clean:
	rm -rf $(VENV) $(FLASHINFER_VENV) $(OLDEST_VENV) out harness-out *-run canary-table build dist *.egg-info
