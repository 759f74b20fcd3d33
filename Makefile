# Two commands for a newcomer: `make quickstart` and `make test`. PYTHON and TORCH can be set, for example
#   make quickstart PYTHON=python3.11 TORCH="torch==2.10.0"
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install bench quickstart test chaos chaos-preprocess test-docker test-cluster check style

# torch first and by exact version: an open range would bring several GB of CUDA packages on a machine without a GPU.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[prep,train,dev]'
	touch $@

install: $(VENV)/.installed  ## everything that users and tests need, in the versions of constraints.txt

bench: install  ## the benchmarks, with the peers that they run beside this code; wants a quiet machine
	$(BIN)/pip install --quiet -c constraints.txt -e '.[bench]'
	$(BIN)/python -m tests.benchmarks.bench_transe
	$(BIN)/python -m tests.benchmarks.bench_knn_entity_attention
	$(BIN)/python -m tests.benchmarks.bench_training_step
	$(BIN)/python -m tests.benchmarks.bench_pretrain
	$(BIN)/python -m tests.benchmarks.bench_plan
	$(BIN)/python -m tests.benchmarks.bench_tracking
	$(BIN)/python -m tests.benchmarks.bench_kb_build
	$(BIN)/python -m tests.benchmarks.bench_linker --peer-index build/scispacy-hnsw
	$(BIN)/python -m tests.benchmarks.bench_annotate --peer-index build/scispacy-hnsw
	$(BIN)/python -m tests.benchmarks.bench_annotate_soak
	$(BIN)/python -m tests.benchmarks.bench_pack

quickstart: install  ## the whole way once on the built-in sample, at most 10 minutes on 2 CPU cores
	PATH="$(abspath $(BIN)):$$PATH" launch/quickstart.sh quickstart

test: install  ## the whole test suite, at most 15 minutes on 2 CPU cores
	$(BIN)/python -m pytest

chaos-preprocess: install  ## kills annotation and packing at random, 20 times, and compares every byte; 20 minutes or more
	$(BIN)/python -m tests.chaos.chaos_preprocess

chaos: install  ## kills pretraining and its MLflow server at random and compares losses, samples, figures; 20 minutes at most
	$(BIN)/python -m tests.chaos.chaos_pretrain --results tests/benchmarks/results/chaos_pretrain.md

test-docker: install  ## the compose file on a real Docker engine, which must be running
	$(BIN)/python -m pytest -m docker tests/integration

test-cluster: install  ## Slurm where installed; two hosts: TWO_HOSTS=SCRIPT makes them, or HOSTFILE=FILE WORK=SHARED_FOLDER
	$(BIN)/python -m pytest -m cluster tests/integration

check: install  ## lint and formatting, without edits
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

style: install  ## lint and formatting, with edits
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
