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

# Every stage goes on where it was stopped. With small numbers the whole chain takes twenty minutes, to see that it runs.
RUN ?= output/uso-tiny
PER_SHARD ?= 1024
VAE_STEPS ?= 2800
TEACHER_STEPS ?= 1500
STEPS ?= 40000
REWARD_STEPS ?= 1000
SHAPE_STEPS ?= 1200
ADAPTER_STEPS ?= 1000
DECODER_STEPS ?= 1200
WORDS_STEPS ?= 1500
INVERSION_STEPS ?= 600
TRIALS ?= 48
TRAIN = $(BIN)/python -m training.train --run $(RUN)
train-tiny: test-tools  ## the embedded model from nothing: hours on a CPU
	$(BIN)/python -m training.data --out $(RUN) --per-shard $(PER_SHARD)
	$(BIN)/python -m training.vae --run $(RUN) --steps $(VAE_STEPS) --batch 16
	$(BIN)/python -m training.vae --run $(RUN) --encode
	$(BIN)/python -m training.teacher --run $(RUN) --steps $(TEACHER_STEPS)
	$(TRAIN) --steps $(STEPS) --decay $$(($(STEPS) / 4)) --guided-from $$(($(STEPS) * 2 / 3))
	$(TRAIN) --steps $$(($(STEPS) + $(REWARD_STEPS))) --decay $$(($(REWARD_STEPS) * 4 / 5)) --guided-from 0 --stage reward
	$(TRAIN) --steps $$(($(STEPS) + $(REWARD_STEPS) + $(SHAPE_STEPS))) --decay $$(($(SHAPE_STEPS) * 3 / 4)) \
		--guided-from 0 --stage shape --rate 0.4
	$(TRAIN) --steps $$(($(STEPS) + $(REWARD_STEPS) + $(SHAPE_STEPS) + $(ADAPTER_STEPS))) \
		--decay $$(($(ADAPTER_STEPS) * 3 / 4)) --guided-from 0 --stage adapter --rate 0.5
	$(BIN)/python -m training.decoder --run $(RUN) --steps $(DECODER_STEPS)
	rm -f $(RUN)/offsets.safetensors
	$(BIN)/python -m training.words --run $(RUN) --steps $(WORDS_STEPS)
	$(BIN)/python -m training.inversion --run $(RUN) --steps $(INVERSION_STEPS)
	$(BIN)/python -m training.words --run $(RUN) --steps $(WORDS_STEPS)
	$(BIN)/python -m training.release --run $(RUN) --to $(RUN)/release
	$(BIN)/python -m training.evaluate --weights $(RUN)/release --count $(TRIALS) --to $(RUN)/measured.json \
		--sheet $(RUN)/sheet.png

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
