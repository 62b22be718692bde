# `make` lists the targets. Everything is installed into .venv by the first target that needs it; what is
# already installed and unchanged is not touched again.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

VENV := .venv
# The first of these that is new enough becomes the environment's Python; `make study PYTHON=…` names another.
PYTHON ?= python3 python3.13 python3.12 python3.11

# Which faiss: gpu where an NVIDIA GPU answers, else cpu; `make study FAISS=cpu` decides by hand.
ifndef FAISS
FAISS := $(if $(shell nvidia-smi -L 2>/dev/null | grep '^GPU '),gpu,cpu)
endif
ifeq ($(filter cpu gpu,$(FAISS)),)
$(error FAISS=$(FAISS): allowed are cpu and gpu)
endif

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export TOKENIZERS_PARALLELISM := false
# The kernel named python3 is this environment's, whatever kernels of that name the user has elsewhere.
export JUPYTER_PATH := $(CURDIR)/$(VENV)/share/jupyter$(if $(JUPYTER_PATH),:$(JUPYTER_PATH))
# A user of a container may have no name and no home.
ifeq ($(shell id -un 2>/dev/null),)
export LOGNAME := user$(shell id -u)
export HOME := $(if $(shell test -w "$$HOME" && echo writable),$(HOME),$(CURDIR)/$(VENV))
endif
unexport PYTHONDONTWRITEBYTECODE  # uv compiles nothing: what is imported is compiled once, on first use

RUNTIME := $(VENV)/installed-$(FAISS)
DEVELOP := $(VENV)/installed-$(FAISS)-dev

.PHONY: checkout help doctor study rehearsal seeds test test-all lint format bench readme report search picture lab clean

help: ## list the targets
	@echo "make TARGET, where TARGET is one of"
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  \1|\2/p' Makefile | while IFS='|' read -r name text; do printf '%-12s %s\n' "$$name" "$$text"; done

study: checkout $(RUNTIME) ## run the study: data, training, tables, figures, executed notebooks
	@started=$$(mktemp); trap 'rm "$$started"' EXIT; dvc repro --quiet || { \
	[ "$$(find runs/*/logs -newer "$$started" 2>/dev/null)" ] || dvc repro --dry > /dev/null; \
	exit 1; }  # where DVC itself fails, no stage has begun, and quiet has kept its reason
	@python -m cirlib.app.report

doctor: $(RUNTIME) ## what a study asks of this machine: GPU, memory, disk, hours (STUDY=fashioniq, else that of params.yaml)
	@python -m cirlib.app.doctor $(if $(STUDY),--study "$(STUDY)")

# The study's parameters and lock are put back afterwards, whatever happens.
rehearsal: checkout $(RUNTIME) ## rehearse the FashionIQ study at full size with stand-ins (ANNOTATIONS=folder, else fetched)
	@python -m cirlib.app.rehearsal $(if $(ANNOTATIONS),--annotations "$(ANNOTATIONS)")
	@kept=$$(mktemp -d); cp params.yaml dvc.lock "$$kept"; trap 'cp "$$kept"/* .; rm -r "$$kept"' EXIT; \
	dvc exp run --quiet -S study=fashioniq_rehearsal && python -m cirlib.app.report

seeds: $(RUNTIME) ## repeat the study's trainings on the same data with N=3 seeds (after `make study`)
	@python -m cirlib.app.seeds --count $(or $(N),3)

test: $(DEVELOP) lint ## lint, check the format, run the tests (not the slow ones)
	@python -m pytest -n 2

test-all: $(DEVELOP) lint ## the same with the slow ones: kills, several processes, browsers, whole studies again
	@python -m pytest -n 2 -m ''

lint: $(DEVELOP) ## lint and check the format only
	@ruff check .
	@ruff format --check .

format: $(DEVELOP) ## format the code and the notebooks, fix what ruff can fix
	@ruff check --fix .
	@ruff format .

bench: $(DEVELOP) ## measure speed and memory side by side (docs/performance.md)
	@python -m pytest tests/speed --page=docs/performance.md

readme: $(RUNTIME) ## put the result table of the last study into README.md
	@python -m cirlib.app.report --into README.md

report: $(RUNTIME) ## write the study as one HTML file to hand over, and the notebooks as HTML
	@python -m cirlib.app.report_page

search: $(RUNTIME) ## serve the search page on http://localhost:8866
	@python -m cirlib.app.search_server

picture: $(RUNTIME) ## photograph the search page for the README, while `make search` runs (needs chromium)
	@chromium --headless --no-sandbox --hide-scrollbars --window-size=1160,605 --screenshot=docs/search_page.png http://localhost:8866/

lab: $(RUNTIME) ## open the notebooks in JupyterLab
	@jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) --LabApp.default_url=/lab/tree/notebooks/01_data_prep.ipynb

clean: ## remove the environment and the caches; data and results stay
	@rm -rf $(VENV) *.egg-info .pytest_cache .ruff_cache .hypothesis
	@rm -rf dvc_plots
	@find cirlib tests -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- the environment -------------------------------------------------------------------------------------

# What git and DVC would refuse only after gigabytes were installed.
checkout:
	@refuse() { echo "$$1" >&2; exit 1; }; \
	command -v git >/dev/null || refuse "DVC needs git: sudo apt install git"; \
	test -w . || refuse "$(CURDIR) may not be written by this user: clone the repository into a folder of your own."; \
	test -e .git || refuse "$(CURDIR) is no git clone, which DVC needs: clone the repository, or run \`git init\` here, then \`git add .\` and \`git commit\`."; \
	git rev-parse --git-dir >/dev/null 2>&1 || refuse "git refuses $(CURDIR), which belongs to another user: git config --global --add safe.directory $(CURDIR)"

$(VENV)/created:
	@chosen=; \
	for python in $(PYTHON); do \
	    if command -v "$$python" >/dev/null && "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        chosen=$$python; break; \
	    fi; \
	done; \
	if [ -z "$$chosen" ]; then \
	    echo "This needs Python 3.11 or newer. Tried:" >&2; \
	    for python in $(PYTHON); do echo "  $$python: $$("$$python" --version 2>/dev/null || echo 'not found')" >&2; done; \
	    echo "On Debian 12 or Ubuntu 24.04 and later: sudo apt install python3 python3-venv." >&2; \
	    echo "If it is installed under another name: make PYTHON=/path/to/python3.11 ..." >&2; \
	    exit 1; \
	fi; \
	if ! "$$chosen" -c 'import venv, ensurepip' 2>/dev/null; then \
	    version=$$("$$chosen" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	    echo "Python $$version lacks the venv module. On Debian or Ubuntu: sudo apt install python$$version-venv" >&2; \
	    exit 1; \
	fi; \
	echo "Making $(VENV) with $$("$$chosen" --version)"; \
	"$$chosen" -m venv --clear $(VENV)
	@printf '%s\n' 'export JUPYTER_PATH="$$VIRTUAL_ENV/share/jupyter$${JUPYTER_PATH:+:$$JUPYTER_PATH}"' \
	    'id -un >/dev/null 2>&1 || export LOGNAME="user$$(id -u)"' >> $(VENV)/bin/activate
	@touch $@

# $(call install,EXTRAS): with uv where it can be had, else with pip.
define install
@echo "Installing the packages pinned in requirements.lock (with faiss-$(FAISS)): some GB the first time, mostly PyTorch."
@rm -f $(VENV)/installed-*
@$(VENV)/bin/python -m cirlib.app.install $(1)
@touch $(RUNTIME)
endef

$(RUNTIME): $(VENV)/created pyproject.toml requirements.lock
	$(call install,$(FAISS))
	@touch $@

$(DEVELOP): $(VENV)/created pyproject.toml requirements.lock
	$(call install,$(FAISS) dev)
	@touch $@
