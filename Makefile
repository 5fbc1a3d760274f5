# Everything runs in a virtual environment that the first command makes in .venv; nothing else on the machine changes.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Tests are many small models: one thread each, as many at a time as there are workers.
TEST_WORKERS ?= 2
PYTEST := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.DEFAULT_GOAL := help

.PHONY: help
help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- environment ------------------------------------------------------------------------------------------------------

# What the tests were run with; empty for the newest releases that the ranges of pyproject.toml allow.
CONSTRAINTS ?= -c constraints.txt
INSTALL = rm -f $(VENV)/.recipes $(VENV)/.dev && $(PYTHON) tools/environment.py $(VENV) $(CONSTRAINTS)

# An environment whose Python does not start any more (it was upgraded, or moved) is made anew.
ifneq ($(wildcard $(VENV)/.recipes $(VENV)/.dev),)
ifneq ($(shell $(BIN)/python -c 'import pip' 2>&1),)
$(shell rm -f $(VENV)/.recipes $(VENV)/.dev)
endif
endif

$(VENV)/.recipes: pyproject.toml constraints.txt
	@$(INSTALL) -e '.[recipes,demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	@$(INSTALL) -e '.[recipes,demo,dev]'
	@touch $@ $(VENV)/.recipes

.PHONY: venv
venv: $(VENV)/.dev  ## Create .venv with everything that recipes, tests and lint need, in the versions of constraints.txt

# What comes with torch differs by accelerator: it keeps its range, and pip takes what fits the machine.
OF_TORCH := torch|torchvision|triton|setuptools|sympy|mpmath|networkx|cuda-[a-z]+|nvidia-[a-z0-9-]+
UV := .venv-lock/bin/uv

$(UV):
	ROOM_GB=1 $(PYTHON) tools/environment.py .venv-lock uv

.PHONY: lock
lock: $(UV)  ## Add new dependencies of pyproject.toml to constraints.txt; the others keep their version if possible
	@cp constraints.txt .venv-lock/constraints.txt
	$(UV) pip compile --quiet --universal --all-extras --python-version 3.10 --no-annotate \
		--custom-compile-command 'make lock' $(LOCK_FLAGS) pyproject.toml --output-file .venv-lock/constraints.txt
	grep -vE '^($(OF_TORCH))==' .venv-lock/constraints.txt > constraints.txt

.PHONY: lock-newest
lock-newest:  ## Raise constraints.txt to the newest releases; then: make test
	$(MAKE) lock LOCK_FLAGS=--upgrade

# --- recipes ----------------------------------------------------------------------------------------------------------

.PHONY: demo
demo: $(VENV)/.recipes  ## Fine-tune a BERT on human-rated sentences, ERM against RGD (about 3 minutes, no Hub)
	HF_HUB_OFFLINE=1 $(BIN)/python recipes/demo.py

.PHONY: demo-domains
demo-domains: $(VENV)/.recipes  ## Train on digits at some angles, test on another angle: ERM against RGD (about a minute, no network)
	HF_HUB_OFFLINE=1 $(BIN)/python recipes/domainbed.py recipes/configs/rotated_digits.yaml

.PHONY: demo-tabular
demo-tabular: $(VENV)/.recipes  ## Train networks on a table of scikit-learn, ERM against RGD, five seeds each (about a minute, no network)
	HF_HUB_OFFLINE=1 $(BIN)/python recipes/tabular.py recipes/configs/tabular_demo.yaml

.PHONY: demo-vision
demo-vision: $(VENV)/.recipes  ## Train a small ViT on handwritten digits, ERM against RGD, with plots (about two minutes, no network)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python recipes/imagenet.py recipes/configs/digits_vit.yaml --overwrite_output_dir

.PHONY: report
report: $(VENV)/.recipes  ## Rebuild the reports of both studies, and their tables in README.md and docs/evidence.md
	$(BIN)/python -m benchmarks.report --results_dir benchmarks/results/evidence --readme README.md
	$(BIN)/python -m benchmarks.report --results_dir benchmarks/results/compare --readme docs/evidence.md

# --- checks -----------------------------------------------------------------------------------------------------------

.PHONY: test
test: $(VENV)/.dev  ## Run all tests except the slow ones
	$(PYTEST) -m "not slow" -n $(TEST_WORKERS) --dist loadfile

.PHONY: test-quick
test-quick: $(VENV)/.dev  ## Run the library's own tests without the multi-process and slow ones (under 2 minutes)
	$(PYTEST) tests/rgd_hf -m "not slow" -k "not processes" -n $(TEST_WORKERS) --dist loadfile

.PHONY: test-latest
test-latest:  ## Run the tests with the newest releases that pyproject.toml allows (in .venv-latest); reports what is new in them
	@rm -f .venv-latest/.dev .venv-latest/.recipes
	$(MAKE) venv VENV=.venv-latest CONSTRAINTS='--upgrade --upgrade-strategy eager'
	$(MAKE) test VENV=.venv-latest; status=$$?; .venv-latest/bin/python tests/tools/upstream_report.py; exit $$status

.PHONY: test-oldest
test-oldest: $(UV)  ## Run the tests with the lower bounds of pyproject.toml (in .venv-oldest)
	$(UV) pip compile --quiet --all-extras --python $(PYTHON) --resolution lowest-direct --no-annotate --no-header \
		pyproject.toml --output-file .venv-lock/lowest.txt
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS='-c .venv-lock/lowest.txt'

.PHONY: test-slow
test-slow: $(VENV)/.dev  ## Run the slow tests
	$(PYTEST) -m slow --timeout 3600

.PHONY: lint
lint: $(VENV)/.dev  ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy rgd_hf recipes benchmarks

# --- documentation and release ---------------------------------------------------------------------------------------

.PHONY: docs
docs: $(VENV)/.dev  ## Build the documentation into site/ (open site/index.html); warnings are errors
	$(BIN)/zensical build --strict --clean

.PHONY: notebook
notebook: $(VENV)/.dev  ## Make docs/notebook.ipynb from docs/notebook.py
	$(BIN)/jupytext --update --to notebook docs/notebook.py

.PHONY: release
release: $(VENV)/.dev  ## Build wheel and sdist into dist/, check them, and train with the wheel in an empty environment
	rm -rf dist build
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(PYTHON) -m venv --clear .venv-release
	.venv-release/bin/python -m pip --disable-pip-version-check install --quiet dist/*.whl
	cd dist && ../.venv-release/bin/python ../.ci/check_wheel.py

.PHONY: check-gpu
check-gpu: $(VENV)/.dev  ## Check the library on this machine's GPU: correctness, synchronization, speed; a table and a JSON file (5 to 8 minutes)
	$(BIN)/python benchmarks/cost/check_gpu.py

.PHONY: bench-overhead
bench-overhead: $(VENV)/.recipes  ## Measure the cost of re-weighting: step time and peak memory compared with the stock Trainer
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/cost/overhead.py

.PHONY: bench-lm
bench-lm: $(VENV)/.recipes  ## Measure token losses of language models: time and peak memory with logits, without, and by other libraries
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/cost/lm.py
