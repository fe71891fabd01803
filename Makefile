# make run: the page on http://127.0.0.1:7860. make test: every test. Both set up .venv first, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test lint train-tiny clean

run: $(VENV)/.ready
	$(BIN)/python app.py

test: $(VENV)/.ready-test
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.ready-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The embedded model from nothing: hours on a CPU, and every stage goes on where it was stopped.
RUN ?= output/uso-tiny
VAE_STEPS ?= 2800
STEPS ?= 40000
train-tiny: $(VENV)/.ready-test
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
	$(BIN)/python -m training.release --run $(RUN) --to $(RUN)/release
	$(BIN)/python -m training.evaluate --weights $(RUN)/release --to $(RUN)/measured.json --sheet $(RUN)/sheet.png

$(VENV)/.ready: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.ready-test: $(VENV)/.ready requirements-test.txt requirements-mcp.txt training/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	@touch $@

clean:
	rm -rf $(VENV)
