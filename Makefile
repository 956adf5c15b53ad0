# make demo | test | lab | notebooks | book | glossary | figures | bench | lint: each does its own set-up into .venv
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PROFILE ?= laptop

.PHONY: demo test lab notebooks book glossary figures bench lint clean
.DEFAULT_GOAL := demo

# uv installs several times faster, where it is there; both take the same versions
ifneq ($(shell command -v uv),)
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
VENV_MADE := uv venv --quiet --seed --allow-existing --python $(PYTHON) $(VENV)
INSTALL := uv pip install --quiet --python $(BIN)/python --constraint constraints.txt
else
VENV_MADE := $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet --upgrade "pip>=24"
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt
endif

$(READY): pyproject.toml constraints.txt
	$(VENV_MADE)
	$(INSTALL) torch
	@rm -rf *.egg-info   # an older one would name an older version
	$(INSTALL) --editable ".[lab,test]"
	@touch $(READY)

# LoRA and the four methods on real text, a table, and in out/ the figures; a second time it finds its runs
demo: $(READY)
	$(BIN)/lowrank-teach compare --task rt --backbone minilm-l6 --profile $(PROFILE) --figures out

# the suite, then every notebook in the tiny profile: with the exercises solved (nbmake), and as a reader finds it
test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal tests
	$(BIN)/python tests/run_notebooks.py

# opens at the first notebook; runs are kept in the package's cache folder. The package comes first, so that every
# kernel inherits how torch's threads wait. A notebook that is saved keeps the kernel's names that it had
lab: $(READY)
	$(BIN)/python -c "import lowrank_teach; from jupyterlab.labapp import main; main()" notebooks/00_start_here.ipynb --ContentsManager.pre_save_hook=lowrank_teach.course.contents.keep_kernel

# executes every notebook from its text in notebooks/text and moves the outputs over only if all passed
notebooks: $(READY)
	$(BIN)/python tests/run_notebooks.py --write --profile $(PROFILE)

# the course as a static site in notebooks/site/_build/html, from the stored outputs; it needs no network to be read
book: $(READY)
	$(BIN)/python notebooks/site/build.py

# the page of all letters, from the rows the notebooks use
glossary: $(READY)
	$(BIN)/python -c "from lowrank_teach.course import glossary; print(glossary.page(), end='')" > notebooks/GLOSSARY.md

# what the repository ships in figures/, drawn again from its numbers; with TRAIN=1 the numbers are made again first
figures: $(READY)
	$(BIN)/lowrank-teach figures --folder figures $(if $(TRAIN),--train)

# speed, against what one would pick instead: a table of ratios with the aims, and the records of figures/data/bench_*
bench: $(READY)
	$(BIN)/python tests/benchmarks

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info
