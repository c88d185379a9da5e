# Two commands do everything on a fresh machine: `make demo` and `make test`.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# Tests at a time; each may take 4 GB.
JOBS ?= 2
PYTEST := $(BIN)/python -m pytest -q -n $(JOBS) --dist=worksteal tests
export CUDA_VISIBLE_DEVICES ?= -1

.PHONY: demo test quick lint docs clean

demo: $(VENV)/.installed  ## trains, evaluates and exports on the embedded digits
	$(BIN)/python launch.py --experiment=g16_ln_pn --workdir=runs/demo

test: $(VENV)/.installed  ## the whole suite with tf-keras, then what users' scripts meet with Keras 3
	TF_USE_LEGACY_KERAS=1 $(PYTEST)
	TF_USE_LEGACY_KERAS=0 $(PYTEST) -m "not slow and not once"

quick: $(VENV)/.installed
	TF_USE_LEGACY_KERAS=1 $(PYTEST) -m "not slow"

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs: $(VENV)/.installed  ## the reference from the docstrings, and the figures
	$(BIN)/python docs/make_api.py
	$(BIN)/python docs/figures/proxy_norm.py --out=docs/images/proxy_norm.png

$(VENV)/.installed: setup.cfg
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -q -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
