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

.PHONY: help plan repro evidence studies test lint teacher lock lab bench-gpu clean-scratch
help:
	@echo "make repro [PROFILE=$(PROFILE)]  compose conf/profile/PROFILE.yaml, run the pipeline, write reports/PROFILE"
	@echo "make evidence             the same with PROFILE=evidence: seeds, ablations, hours; goes on where it was stopped"
	@echo "make plan [PROFILE=$(PROFILE)]   what a profile still needs and will take, before anything is spent"
	@echo "make studies              check the metrics, take finished runs apart: reports/studies"
	@echo "make test                 run the tests"
	@echo "make lint                 check the style of code and notebooks"
	@echo "make lab                  open the notebooks"
	@echo "make teacher              train the shipped tiny models again (the frozen stages)"
	@echo "make bench-gpu            measure training at Stable Diffusion 1.5's size on this machine's GPU"
	@echo "make lock                 compile requirements.in to requirements.txt"
	@echo "make clean-scratch        drop the checkpoints of unfinished trainings"

# What the rehearsal profile reads in place of Stable Diffusion, LAION and COCO.
STAND_INS := build/rehearsal/pipeline/model_index.json
repro: $(INSTALLED) $(if $(filter rehearsal,$(PROFILE)),$(STAND_INS))
	@test -e .git || $(BIN)/dvc config --local core.no_scm true
	@$(BIN)/python -m splam.params $(PROFILE)
	$(BIN)/dvc repro
	@$(BIN)/python -m splam.report $(PROFILE)

# Runs whose metrics are in reports/evidence, committed by whichever machine, are not made again (splam.finished).
evidence:
	$(MAKE) repro PROFILE=evidence

# Not part of `make repro`: what they find changes with the metrics and the method, not with every run.
studies: $(INSTALLED)
	$(BIN)/python -m splam.stage notebooks/explore/metric_study.ipynb --out build/studies/metric_study.ipynb
	$(BIN)/python -m splam.stage notebooks/explore/subpath_errors.ipynb --out build/studies/subpath_errors.ipynb

plan: $(INSTALLED)
	@$(BIN)/python -m splam.plan $(PROFILE)

$(STAND_INS): splam/rehearsal.py | $(INSTALLED)
	$(BIN)/python -m splam.rehearsal build/rehearsal
	@touch $@

test: $(INSTALLED)
	$(BIN)/python -m pytest -q -n logical --maxprocesses 4 --dist worksteal

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@find notebooks -name '*.ipynb' -not -path '*/.ipynb_checkpoints/*' -exec $(BIN)/nbstripout --verify --keep-id {} +

# DVC never runs a frozen stage, even by force, and `dvc freeze` would move the comments of dvc.yaml about:
# their `frozen: true` lines are taken out for as long as it takes.
teacher: $(INSTALLED)
	$(BIN)/python -m splam.params $(PROFILE)
	$(BIN)/dvc repro data.dvc
	@stages=$$(awk '/^  [a-z0-9-]+:$$/ {gsub(/[ :]/, ""); stage = $$0} /^ *frozen: true$$/ {print stage}' dvc.yaml); \
	test -n "$$stages" || { echo "dvc.yaml has no frozen stage"; exit 1; }; \
	sed -i.frozen '/^ *frozen: true$$/d' dvc.yaml; \
	trap 'mv dvc.yaml.frozen dvc.yaml' EXIT; trap 'exit 130' INT TERM; \
	$(BIN)/dvc repro --force --single-item $$stages

lock: $(UV)
	$(UV) pip compile --quiet --universal --generate-hashes --python-version 3.11 requirements.in -o requirements.txt

lab: $(INSTALLED)
	$(BIN)/jupyter lab

bench-gpu: $(INSTALLED)
	$(BIN)/python -m benchmarks.train_throughput

clean-scratch:
	rm -rf build/scratch build/ipython

$(UV):
	@$(PYTHON) -c "import sys; sys.version_info[:2] == (3, 11) or sys.exit('python 3.11 is needed: make PYTHON=...')"
	$(PYTHON) -m venv $(VENV)
	$(PYTHON) -m venv $(VENV)/uv
	$(VENV)/uv/bin/python -m pip install --quiet uv==$(UV_VERSION)

# Redone whenever the pinned packages change. Compiled once here, for where Python may not keep bytecode
# (PYTHONDONTWRITEBYTECODE, as in containers) every process would compile torch and transformers anew: 10 seconds.
$(INSTALLED): requirements.txt | $(UV)
	@echo "Installing the packages of requirements.txt into $(VENV): 6 GB, a minute or more."
	$(UV) pip sync --quiet --compile-bytecode --require-hashes --python $(BIN)/python requirements.txt
	@touch $@
