# Every target makes or updates the virtual environment .venv first; the second time that takes a moment.
# Another Python than the first suitable one: make PYTHON=/path/to/python3.11 TARGET

BIN = .venv/bin
SMOKE = results/reproduced/smoke
# Runs and notebooks at a time, each on its share of the cores: models this small do not keep two busy.
JOBS = 2
PYTEST_ARGS =
TRAINED = $(wildcard results/*/runs)

# Notebooks run on this environment's kernel, not on a user's of the same name.
export JUPYTER_PREFER_ENV_PATH = 1
export PYTHON

.PHONY: help install reproduce figures test check-gpu lint format lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

install: ## the virtual environment .venv: exact versions, and this package
	@sh .ci/install

reproduce: install ## train the smoke study, teacher and all binary variants, and fill its tables (minutes on 2 cores)
	HF_HUB_OFFLINE=1 $(BIN)/binaryvit reproduce results/smoke/study.yaml --output $(SMOKE) --jobs $(JOBS)
	@echo "The tables are in $(SMOKE)/tables."

figures: install ## tables and figures of the committed studies again, from what is stored: no training, no data (minutes)
	@$(MAKE) --no-print-directory -j 2 $(TRAINED:results/%/runs=figures-of-%)

figures-of-%:
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/binaryvit figures results/$*

# Two processes of one thread each use two cores better than one process of two threads: the models are small.
test: install ## all tests (10 minutes on 2 cores at most); PYTEST_ARGS="-k name" for some of them
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)

check-gpu: install ## on a machine with a CUDA device, 8 minutes: its tests, its speed, the smoke study; a page in results/benchmarks
	HF_HUB_OFFLINE=1 $(BIN)/python -m binaryvit.bench.gpu

lint: install ## check the form of code and notebooks, and which room imports which
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/lint-imports --no-logo
	$(BIN)/nbstripout --verify notebooks/*.ipynb

format: install ## put code and notebooks into that form
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/nbstripout notebooks/*.ipynb

lock: install ## resolve requirements.lock again, after a change of the dependencies in pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --extra dev --no-annotate --custom-compile-command "make lock" \
		--output-file requirements.lock pyproject.toml

clean: ## remove .venv and caches; results stay
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find binaryvit tests -name __pycache__ -type d -prune -exec rm -rf {} +
