# `make demo` and `make test` need Python 3.11 or later and make; everything else they fetch into .venv.
#
# On Linux, PyPI's PyTorch brings gigabytes of CUDA libraries. Where no GPU is wanted, the CPU build is enough:
#     make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
TORCH_INDEX ?=
LOWEST ?= 2.6.0
WORKERS ?= 2
SHARD ?=
SEEDS ?= 1 2 3 4 5 6 7 8 9 10

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet \
	$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
SOURCES := pyproject.toml constraints.txt

export OMP_NUM_THREADS := 1

.PHONY: help demo test lint types tests test-wide test-matrix test-seeds test-lower test-frameworks-lower test-ray docs readme-picture clean
.DELETE_ON_ERROR:

help:
	@echo "make demo            watch a network lose and keep its ability to learn; ends with demo/report.html"
	@echo "make test            ruff, mypy, tests and doctests"
	@echo "make test-wide       the tests that make test leaves out: more architectures for each method"
	@echo "make lint types tests   one of them at a time"
	@echo "make test-matrix     every method with every architecture and every optimizer (make test covers pairs);"
	@echo "                     SHARD=3/40: the third of forty parts, for several nights"
	@echo "make test-seeds      doctests and drawn examples from other random seeds; SEEDS=\"11 12\": from these"
	@echo "make test-lower      the tests with the oldest PyTorch that is supported ($(LOWEST)), in its own venv"
	@echo "make test-frameworks-lower  adapters, language models, tuning and data with the oldest supported packages, in a venv of their own"
	@echo "make test-ray        runs on a Ray cluster of two nodes on this machine; Ray is in its own venv"
	@echo "make docs            the documentation as a site: build/site/index.html"
	@echo "make readme-picture  docs/images/demo.svg from the records of the last demo"
	@echo "make clean           remove the venvs and all caches (never results)"

demo: $(VENV)/.installed
	$(BIN)/pliant demo --out demo

# pytest comes last, so that its summary is the last line.
test: lint types tests

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

tests: $(VENV)/.installed-dev
	$(BIN)/pytest -n $(WORKERS) -m "not wide"

test-wide: $(VENV)/.installed-dev
	$(BIN)/pytest -n $(WORKERS) -m wide tests

test-matrix: $(VENV)/.installed-dev
	PLIANT_FULL_MATRIX=1 $(if $(SHARD),PLIANT_SHARD=$(SHARD)) $(BIN)/pytest -n $(WORKERS) tests/contracts

test-seeds: $(VENV)/.installed-dev
	for seed in $(SEEDS); do PLIANT_TEST_SEED=$$seed $(BIN)/pytest -q -n $(WORKERS) -p no:cacheprovider pliant \
		$$(grep -lr --include='*.py' '^from hypothesis import' tests) || exit 1; done

test-lower: $(VENV)-lower/.installed
	$(VENV)-lower/bin/pytest -n $(WORKERS)

test-frameworks-lower: $(VENV)-frameworks/.installed
	$(VENV)-frameworks/bin/python -m pytest -p no:cacheprovider -m "not wide" tests/integrations tests/lm \
		tests/bench/test_bench_study.py tests/bench/test_bench_data.py tests/test_cli_run.py tests/test_records_merge.py

test-ray: $(VENV)-ray/.installed
	$(VENV)-ray/bin/python -m pytest -p no:cacheprovider tests/cluster

docs: $(VENV)/.installed-dev
	$(BIN)/python -m sphinx -q -n -W --keep-going -b html docs build/site
	@echo "open build/site/index.html"

readme-picture: $(VENV)/.installed
	$(BIN)/pliant report demo/results --figure docs/images/demo.svg --stream random_label_digits

clean:
	rm -rf $(VENV) $(VENV)-lower $(VENV)-frameworks $(VENV)-ray .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	find pliant tests references -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "no python3 found; install Python 3.11 or later" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is older than 3.11; set another: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(SOURCES) | $(BIN)/python
	$(PIP) -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(SOURCES) | $(BIN)/python
	$(PIP) -c constraints.txt -e '.[dev,docs,browser,data,huggingface,lora,lightning,schedulefree,rl,tune,frames]'
	@touch $(VENV)/.installed $@

$(VENV)-lower/.installed: $(SOURCES)
	$(PYTHON) -m venv $(VENV)-lower
	grep -v '^torch==' constraints.txt > $(VENV)-lower/constraints.txt
	$(VENV)-lower/bin/python -m pip --disable-pip-version-check install --quiet \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
		-c $(VENV)-lower/constraints.txt -e '.[dev,data,huggingface,lora,lightning,schedulefree,rl,tune,frames]' 'torch==$(LOWEST)'
	@touch $@

# Ray is large: a venv of its own, which looks into the other one for everything else.
$(VENV)-ray/.installed: $(SOURCES) $(VENV)/.installed-dev
	$(PYTHON) -m venv $(VENV)-ray
	$(abspath $(BIN))/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> $$($(VENV)-ray/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/other.pth
	$(VENV)-ray/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt ray
	@touch $@

# The frameworks of the extras at their lower bounds; everything else, PyTorch too, is that of the other venv.
$(VENV)-frameworks/.installed: $(SOURCES) $(VENV)/.installed-dev
	$(PYTHON) -m venv $(VENV)-frameworks
	$(abspath $(BIN))/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> $$($(VENV)-frameworks/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/other.pth
	$(VENV)-frameworks/bin/python -c 'import tomllib; \
		extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
		names = ("huggingface", "lora", "lightning", "schedulefree", "rl", "data", "tune", "frames"); \
		print(*[item.replace(">=", "==") for name in names for item in extras[name] if "gymnasium" not in item])' \
		| xargs $(VENV)-frameworks/bin/python -m pip --disable-pip-version-check install --quiet --no-warn-conflicts
	@touch $@
