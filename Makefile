# One command does everything: `make repro`. It needs python 3.11, make, git and a connection for the packages.
PROFILE ?= tiny
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
UV := $(VENV)/uv/bin/uv
UV_VERSION := 0.13.9
INSTALLED := $(VENV)/.installed

# dvc.yaml says `python`: this is the one.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Of this checkout, whatever the shell has set; splam/__init__.py refuses what is left to refuse.
export PYTHONPATH := $(CURDIR)
export PYTHONUTF8 := 1
unexport PYTHONOPTIMIZE PYTHONSAFEPATH

.NOTPARALLEL:
.PHONY: help plan repro night switch evidence test lint teacher lock lab play bench bench-gpu clean-scratch
help:
	@echo "make repro [PROFILE=$(PROFILE)]  compose conf/profile/PROFILE.yaml, run the pipeline, write reports/PROFILE"
	@echo "make plan [PROFILE=$(PROFILE)]   what a profile still needs, before anything is spent"
	@echo "make evidence             the trainings that the claims rest on, in reports/evidence"
	@echo "make test                 run the tests"
	@echo "make lint                 check the style of code and notebooks"
	@echo "make lab                  open the notebooks"
	@echo "make play                 draw your own captions, with the shipped students or yours"
	@echo "make teacher              train the shipped tiny models again"
	@echo "make bench                measure speed beside the alternatives, as ratios (benchmarks/README.md)"
	@echo "make bench-gpu            measure training at Stable Diffusion 1.5's size on this machine's GPU"
	@echo "make lock                 pin the packages of pyproject.toml and requirements.in in requirements.txt"
	@echo "make clean-scratch        drop checkpoints of unfinished trainings, and latents that are encoded once"

# What the rehearsals read in place of Stable Diffusion, LAION, COCO and pictures of one's own.
STAND_INS := build/rehearsal/own/model/model_index.json

repro: $(INSTALLED) $(if $(filter rehearsal%,$(PROFILE)),$(STAND_INS)) $(if $(filter rehearsal,$(PROFILE)),night) switch
	@test -e .git || dvc config --local core.no_scm true
	@python -m splam.profile $(PROFILE)
	$(if $(filter 1,$(JOBS)),,$(PARALLEL))
	dvc repro
	@python -m splam.report

# Small networks have no use for a whole machine: stages that do not wait for one another run JOBS at a time, a thread
# each, and `dvc repro` does what is left. It would also do everything by itself, one stage after another.
JOBS ?= $(if $(filter tiny smoke rehearsal%,$(PROFILE)),2,1)
due = sed -n "s/^Running stage '\(.*\)':$$/\1/p"
at_once = dvc repro --dry --keep-going 2> /dev/null | $(due) | grep -E '^($(1))(@|$$)' | \
	xargs -r -P $(JOBS) -n 1 dvc --wait-for-lock repro -s
define PARALLEL
@test -z "$$(dvc repro --dry 2> /dev/null | $(due))" || { export OMP_NUM_THREADS=1; dvc repro data.dvc teacher && \
	$(call at_once,references|trajectories|latents) && $(call at_once,teacher-samples|distill) && \
	$(call at_once,evaluate|baselines|sample|delta); }
endef

# The rehearsal begins with that of sd15-night: a folder of pictures, and LoRA.
night:
	$(MAKE) repro PROFILE=rehearsal-night

# Another profile has other stages: what this one left is cleared, and comes back from DVC's cache when it does.
switch:
	@grep -qx 'profile: $(PROFILE)' params.yaml || \
		rm -rf dvc.lock build/executed build/latents build/runs build/teacher_samples build/trajectories

plan: $(INSTALLED)
	@python -m splam.preflight $(PROFILE)

# Runs that are due, two at a time, and then the students to ship and the report.
evidence: $(INSTALLED)
	@export OMP_NUM_THREADS=1; said=$$(dvc repro --dry evidence/dvc.yaml); status=$$?; \
	runs=$$(echo "$$said" | $(due)); if test -n "$$runs"; then \
		echo "Due: $$(echo "$$runs" | grep -cF @) runs, ten minutes of a core each, then the students and the report."; \
		echo "$$runs" | grep -F @ | xargs -r -P $(JOBS) -n 1 dvc --wait-for-lock repro -s && dvc repro evidence/dvc.yaml; \
	elif test $$status = 0; then echo "The evidence is complete: nothing to run."; else exit $$status; fi

$(STAND_INS): tests/standins/sd.py $(wildcard tests/standins/pipeline/*/*.json) | $(INSTALLED)
	python -m tests.standins.sd build/rehearsal
	@touch $@

test: $(INSTALLED)
	python -m pytest -q -n logical --maxprocesses 4 --dist worksteal

lint: $(INSTALLED)
	ruff check .
	ruff format --check .
	@find . -name '*.ipynb' -not -path './.venv/*' -not -path './build/*' -not -path '*/.ipynb_checkpoints/*' \
		-exec nbstripout --verify --keep-id {} +

teacher: $(INSTALLED)
	dvc repro models/tiny/dvc.yaml
	cp -r $(addprefix build/world/,vae unet clip card.json card.md samples.png) models/tiny/

bench: $(INSTALLED)
	printf '%s\n' sweep step evaluation sampling | OMP_NUM_THREADS=1 xargs -P 2 -n 1 python -m benchmarks
	OMP_NUM_THREADS=1 python -m benchmarks repro growth

bench-gpu: $(INSTALLED)
	python -m benchmarks.train_throughput

lock: $(UV)
	$(UV) pip compile --quiet --universal --generate-hashes --python-version 3.11 \
		pyproject.toml requirements.in -o requirements.txt

lab: $(INSTALLED)
	jupyter lab

play: $(INSTALLED)
	@python -m play.app

clean-scratch:
	rm -rf build/scratch build/ipython

$(UV):
	@$(PYTHON) -c "import sys; sys.version_info[:2] == (3, 11) or sys.exit('python 3.11 is needed: make PYTHON=...')"
	$(PYTHON) -m venv $(VENV)
	$(PYTHON) -m venv $(VENV)/uv
	$(VENV)/uv/bin/python -m pip install --quiet uv==$(UV_VERSION)

# Redone whenever the pinned packages change. Compiled once here, for where Python may not keep bytecode
# (PYTHONDONTWRITEBYTECODE, as in containers) every process would compile torch and transformers anew: 10 seconds.
$(INSTALLED): requirements.txt pyproject.toml | $(UV)
	@echo "Installing the packages of requirements.txt into $(VENV): 6 GB, a minute or more."
	$(UV) pip sync --quiet --compile-bytecode --require-hashes --python $(BIN)/python requirements.txt
	$(UV) pip install --quiet --no-deps --no-build-isolation --python $(BIN)/python -e .
	@touch $@
