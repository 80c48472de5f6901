# make demo: train, sample and score on handwritten digits. make test: the test suite;
# make test-all: with the slow ones.
# Both make .venv and install into it first, if that has not been done.

PYTHON ?= python3
RUN := .venv/bin/python
DEMO := results/demo

.PHONY: demo test test-all clean

demo: .venv/installed
	$(RUN) train.py --preset digits --results-dir $(DEMO) --resume auto
	$(RUN) sample_ddp.py ODE --ckpt "$$(ls $(DEMO)/*-SiT-Ti-2-digits/checkpoints/*.pt | tail -n 1)" --sampling-method heun2 \
		--num-sampling-steps 25 --num-fid-samples 500 --per-proc-batch-size 100 \
		--sample-dir $(DEMO) --name digits
	$(RUN) -m evaluations.images digits $(DEMO)/digits.npz --extractor classifier

test: .venv/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pytest -n auto

test-all: .venv/installed
	$(RUN) -m pytest -n auto -m ""

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --editable '.[test]'
	touch $@

clean:
	rm -rf .venv $(DEMO)
