# make demo   install, then compare samplers on the embedded model: a table, and a page in out/demo
# make check  install, lint, type-check and run the tests of what is touched most, in a minute
# make test   install, lint, type-check and run the tests
# make docs   install, write the pages made from the registry, build the documentation in site/
# make bench  install, run the benchmark suite, report in out/benchmarks; BENCH=--quick for a small one
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed

# `make check` runs the samplers against closed forms, and the conformance kit on one sampler of each kind.
CHECK = tests/registry/test_registry.py tests/path/test_grid.py tests/path/test_prediction.py \
	tests/sampling/test_sampling.py tests/plugins/test_solvers.py \
	$(addprefix --sdesamplers=,ddim euler-maruyama dpmpp-2m)

.PHONY: demo check test default-tests test-slow test-lowest lint bench docs clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip setuptools -c constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev,docs,report]"
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/sdesamplers compare fashion-mnist --samplers tuned,quality,unipc,dpmpp-2m,heun,ddim,er-sde --nfe 5,10,20 \
		--num-samples 64 --report --out out/demo

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --config pyproject.toml
	$(BIN)/python docs/check_english.py

check: lint
	$(BIN)/pytest -q -n 2 --dist worksteal $(CHECK)

# The linters, of which mypy takes the most time, run beside the tests.
test: $(STAMP)
	$(MAKE) -j 2 lint default-tests

default-tests: $(STAMP)
	$(BIN)/pytest -q -n 2 --dist worksteal

test-slow: $(STAMP)
	$(BIN)/pytest -q -m slow -n 2 --dist worksteal

# The samplers and everything below them, with the lowest versions declared. PYTHON is to be the lowest Python, 3.10.
LOWEST = tests/models tests/path tests/plugins tests/processes tests/registry tests/sampling tests/ode tests/test_losses.py

test-lowest:
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install -q -c constraints-lowest.txt -e . \
		pytest pytest-xdist hypothesis scikit-learn torchdiffeq matplotlib transformers
	.venv-lowest/bin/pytest -q -n 2 --dist worksteal $(LOWEST)

bench: $(STAMP)
	$(BIN)/python benchmarks/suite.py --out out/benchmarks $(BENCH)

# --strict makes warnings errors; the variable silences a notice of the theme's authors about its successor.
docs: $(STAMP)
	$(BIN)/python docs/make_pages.py
	$(BIN)/python docs/make_stub.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "the documentation is in site/index.html"

clean:
	rm -rf $(VENV) out build dist site *.egg-info
