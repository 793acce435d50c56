# Two commands from a fresh clone: `make reproduce` and `make test`. `make` alone lists the rest.
# Any variable can be set on the command line: make install PYTHON=/usr/bin/python3.12

# Where the repository is on GitHub, as owner/name: set it once, and `make badges` writes it into README and notebooks.
REPOSITORY = YOUR_NAME/logitmix_lite
BRANCH = main

VENV ?= .venv
# What is installed there. CONSTRAINTS=constraints/recorded.txt: the versions that recorded the notebooks' outputs.
PACKAGES ?= -e ".[test,lab]"
CONSTRAINTS ?=

# The first Python that is 3.11 or newer and can make a virtual environment.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	"$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo "$$p" && break; done)

# Which torch: the newest one where there is an NVIDIA GPU, or on macOS and Windows; one tested version on Linux without a GPU.
# On Linux pip's default torch is the CUDA build. It runs without a GPU too, but is a download of some gigabytes:
# set TORCH_INDEX to the address of PyTorch's CPU index to spare it (or of its index for your CUDA version, with an older driver).
TORCH ?= $(shell if [ "$$(uname -s)" != Linux ] || nvidia-smi >/dev/null 2>&1; then echo "torch>=2.6"; else echo "torch==2.13.0"; fi)
TORCH_INDEX ?=

PY = $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)/python
STAMP = $(VENV)/.installed
RUNS = runs/reproduce
METHODS = fixed grpo-kl
EXECUTED = $(patsubst notebooks/%,$(RUNS)/notebooks/%,$(wildcard notebooks/*.ipynb))
TRAINED = $(METHODS:%=$(RUNS)/%/final)

.DEFAULT_GOAL = help
.PHONY: help install test test-oldest test-method mutants reproduce gpu lab book badges tiny clean

# Notebooks are recorded and compared offline, without progress bars, with Jupyter's own way of drawing figures.
test test-method reproduce: export TQDM_DISABLE = 1
test test-method reproduce: export HF_HUB_OFFLINE = 1
unexport MPLBACKEND

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' Makefile

install: $(STAMP) ## make the virtual environment (.venv) with everything in it

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer with venv found. Install one (on Debian and Ubuntu also" \
		"python3-venv), or name it: make PYTHON=/path/to/python" >&2; exit 1; }
	@test -x "$(PY)" || { echo "Making $(VENV) with $(PYTHON)"; "$(PYTHON)" -m venv "$(VENV)"; }
	@"$(PY)" -c "import torch" 2>/dev/null || { echo "Installing $(TORCH) (can take some minutes)"; \
		"$(PY)" -m pip install -q $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)") "$(TORCH)"; }
	@# Hold torch at the build that is there (by pip's name for it: torch.__version__ may add a CUDA label).
	@"$(PY)" -c "from importlib.metadata import version; print('torch==' + version('torch'))" > "$(VENV)/held.txt"
	@$(if $(CONSTRAINTS),grep -v '^torch==' "$(CONSTRAINTS)" >> "$(VENV)/held.txt")
	@echo "Installing logitmix_lite and the rest (can take some minutes)"
	@"$(PY)" -m pip install -q -c "$(VENV)/held.txt" $(PACKAGES)
	@touch "$@"

test: install ## style check, unit tests, and all notebooks against their recorded outputs
	"$(PY)" -m ruff check .
	"$(PY)" -m pytest -n 2 tests
	"$(PY)" -m pytest -n 2 --dist loadfile --nbval --nbval-current-env notebooks

# The oldest packages have no wheels for the newest Python.
OLDEST_PYTHON = $(shell for p in python3.11 python3.12; do "$$p" -c 'import venv, ensurepip' >/dev/null 2>&1 && echo "$$p" && break; done)

test-oldest: ## the method's tests with the oldest packages that pyproject.toml allows (.venv-oldest)
	$(MAKE) --no-print-directory test-method VENV=.venv-oldest CONSTRAINTS=constraints/oldest.txt \
		PACKAGES="-e . pytest pytest-xdist hypothesis" PYTHON="$(or $(OLDEST_PYTHON),$(PYTHON))"

test-method: install
	"$(PY)" -m pytest -n 2 $(patsubst %,tests/test_%.py,mixing grpo mixture hf lora models rollout train reference runs extend rewards evaluate)

SAMPLE = 40

mutants: install ## make small mistakes in the method, one at a time, and count those that the tests notice
	"$(PY)" tests/mutants.py --sample $(SAMPLE)

# Models this small are fastest on one thread: two things at a time use two cores best.
reproduce: install ## run all notebooks, train with both methods, write a report (tiny preset)
	OMP_NUM_THREADS=1 $(MAKE) --no-print-directory -j 2 $(EXECUTED) $(TRAINED)
	"$(PY)" -m logitmix_lite report $(RUNS) --out $(RUNS)/report
	@echo "Done. Report: $(RUNS)/report   Executed notebooks: $(RUNS)/notebooks   Runs: $(METHODS:%=$(RUNS)/%)"

$(RUNS)/notebooks/%.ipynb: notebooks/%.ipynb $(wildcard logitmix_lite/*.py logitmix_lite/*/*.py) | $(STAMP)
	"$(PY)" -m nbconvert --to notebook --execute --ExecutePreprocessor.timeout=600 --log-level ERROR --output-dir $(@D) $<

# A finished run is kept; one that was cut short goes on from its checkpoint.
$(RUNS)/%/final: | $(STAMP)
	"$(PY)" -m logitmix_lite train --preset tiny --method $* --seed 0 --out $(@D) $(if $(wildcard $(@D)/config.json),--resume)

gpu: install ## a visit to a GPU: WEIGHTS=folder of Qwen2.5 0.5B, DATA=folder of GSM8K; or REHEARSE=1, on a CPU
	"$(PY)" tests/gpu/visit.py $(if $(REHEARSE),--rehearse --jobs 2,--weights "$(WEIGHTS)" --data "$(DATA)") \
		--out $(or $(OUT),$(if $(REHEARSE),runs/rehearsal,data/results/gpu))

lab: install ## open the notebooks in Jupyter
	"$(PY)" -m jupyterlab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks

badges: install ## write REPOSITORY and BRANCH into README, the notebooks' badges and their first cells
	"$(PY)" notebooks/badges.py $(REPOSITORY) $(BRANCH)

# Sphinx and its theme come from pip, the program that sets formulas from npm: the site asks nothing of the network.
MATHJAX = build/static/mathjax/tex-svg-full.js

book: $(VENV)/.book $(MATHJAX) ## render notebooks, pages and API to a site that needs no network: build/book/index.html
	"$(PY)" -m sphinx -q -W --keep-going -c docs -b html . build/book

$(VENV)/.book: $(STAMP)
	"$(PY)" -m pip install -q -c "$(VENV)/held.txt" -e ".[book]"
	@touch "$@"

$(MATHJAX):
	@command -v npm >/dev/null || { echo "The book's formulas need npm, once: install Node.js" >&2; exit 1; }
	npm install --silent --no-save --prefix build/npm mathjax@3.2.2
	@mkdir -p $(@D) && cp build/npm/node_modules/mathjax/es5/$(@F) $@

tiny: install ## remake the tiny models in data/tiny
	"$(PY)" -m logitmix_lite tiny

clean: ## remove the virtual environment, caches and what `make reproduce` made
	rm -rf "$(VENV)" .venv-oldest $(RUNS) build dist *.egg-info .pytest_cache .ruff_cache
	find logitmix_lite notebooks tests -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
