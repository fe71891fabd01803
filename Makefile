# `make help` lists the targets. Each sets up .venv first, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROCESSES ?= $(shell cores=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); echo $$((cores < 2 ? 2 : cores > 4 ? 4 : cores)))
PYTEST := $(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help run test test-all test-tools lint space train-tiny clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

run: $(VENV)/.ready  ## the page on http://127.0.0.1:7860
	$(BIN)/python app.py

test: test-tools  ## the tests, on two to four processes, but for the slow ones
	$(PYTEST) -m "not slow"

test-all: test-tools  ## every test: also a Ray cluster, a Space, a notebook, a container, the benchmarks
	$(PYTEST)

test-tools: $(VENV)/.ready-test  ## .venv with what the tests need besides

lint: test-tools  ## ruff and the type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

space: $(VENV)/.ready  ## build/space, a Hugging Face Space's folder
	$(BIN)/python -m deploy.space.assemble build/space

# Every stage goes on where it was stopped.
RUN ?= output/uso-tiny
VAE_STEPS ?= 2800
DECODER_STEPS ?= 1200
STEPS ?= 40000
train-tiny: test-tools  ## the embedded model from nothing: hours on a CPU
	$(BIN)/python -m training.data --out $(RUN)
	$(BIN)/python -m training.vae --run $(RUN) --steps $(VAE_STEPS) --batch 16
	$(BIN)/python -m training.vae --run $(RUN) --encode
	$(BIN)/python -m training.teacher --run $(RUN)
	$(BIN)/python -m training.train --run $(RUN) --steps $(STEPS) --decay $$(($(STEPS) / 4)) \
		--guided-from $$(($(STEPS) * 2 / 3))
	$(BIN)/python -m training.train --run $(RUN) --steps $$(($(STEPS) * 5 / 4)) --decay $$(($(STEPS) / 4)) \
		--guided-from 0 --stage adapter
	$(BIN)/python -m training.train --run $(RUN) --steps $$(($(STEPS) * 5 / 4 + 1000)) --decay 800 \
		--guided-from 0 --stage reward
	$(BIN)/python -m training.train --run $(RUN) --steps $$(($(STEPS) * 5 / 4 + 2200)) --decay 800 \
		--guided-from 0 --stage shape --rate 0.4
	$(BIN)/python -m training.decoder --run $(RUN) --steps $(DECODER_STEPS)
	rm -f $(RUN)/offsets.safetensors
	$(BIN)/python -m training.words --run $(RUN)
	$(BIN)/python -m training.inversion --run $(RUN)
	$(BIN)/python -m training.words --run $(RUN)
	$(BIN)/python -m training.release --run $(RUN) --to $(RUN)/release
	$(BIN)/python -m training.evaluate --weights $(RUN)/release --to $(RUN)/measured.json --sheet $(RUN)/sheet.png

$(VENV)/.ready: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.ready-test: $(VENV)/.ready requirements-test.txt requirements-mcp.txt requirements-heif.txt \
		requirements-ray.txt requirements-metrics.txt training/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	@touch $@

clean:  ## remove .venv
	rm -rf $(VENV)
