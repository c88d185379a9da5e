# Two commands do everything on a fresh machine: `make demo` and `make test`.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# What pip is asked for as torch in `make test-backends`. The build of the default index brings CUDA, some GB of it; that
# for CPUs alone has a file or an index of its own: make test-backends TORCH="torch --index-url=..."
TORCH ?= torch
# Tests at a time; each may take 2.5 GB. A file's tests stay together, since they share what they made.
JOBS ?= 2
PYTEST := $(BIN)/python -m pytest -q -n $(JOBS) --dist=loadfile --no-loadscope-reorder
# What differs between the generations of Keras: layers, networks, optimizers, files; of whole runs one of a kind. The
# rest meets Keras 3 in `make test-all`.
KERAS3 := tests/layers tests/models tests/optim tests/weights/test_weights.py tests/run/test_checkpoint.py
KERAS3 += tests/weights/test_foreign_weights.py::test_keras_applications_by_names_in_hdf5
KERAS3 += tests/weights/test_foreign_weights.py::test_the_normalisation_within_a_wrapped_model_is_read
KERAS3 += tests/export/test_saving.py
KERAS3 += tests/export/test_export.py::test_signatures_of_the_saved_model
KERAS3 += tests/training/test_train.py tests/project/test_security.py
KERAS3 += tests/training/test_resume.py::test_a_signal_saves_the_step_and_ends_the_run
KERAS3 += tests/training/test_finetune.py::test_the_frozen_part_stays_bit_equal_and_the_rest_trains
export CUDA_VISIBLE_DEVICES ?= -1

.PHONY: demo quick test test-all test-backends lint site figures clean

demo: $(VENV)/.installed  ## trains, evaluates and exports on the embedded digits
	$(BIN)/python launch.py --experiment=g16_ln_pn --workdir=runs/demo

quick: $(VENV)/.installed  ## seconds: no process is started, nothing is trained
	TF_USE_LEGACY_KERAS=1 $(PYTEST) -m "not slow and not run" tests

test: $(VENV)/.installed  ## about twenty minutes: with tf-keras, then what differs with Keras 3
	TF_USE_LEGACY_KERAS=1 $(PYTEST) -m "not slow" tests
	TF_USE_LEGACY_KERAS=0 $(PYTEST) -m "not slow and not once" $(KERAS3)

test-all: $(VENV)/.installed  ## everything, hours: before a release, and after changes to what it alone covers
	TF_USE_LEGACY_KERAS=1 $(PYTEST) tests
	TF_USE_LEGACY_KERAS=0 $(PYTEST) -m "not once" tests
	$(BIN)/python tools/faults.py

test-backends: .venv-backends/.installed  ## Keras 3 on JAX and on PyTorch, minutes: a process each, no TensorFlow in it
	KERAS_BACKEND=jax TF_USE_LEGACY_KERAS=0 .venv-backends/bin/python -m pytest -q tests/backends
	KERAS_BACKEND=torch TF_USE_LEGACY_KERAS=0 .venv-backends/bin/python -m pytest -q tests/backends

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file=tools/calls.ini

site: $(VENV)/.installed-docs  ## the documentation with the API reference, in site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

figures: $(VENV)/.installed  ## figures of the documentation that need no runs
	$(BIN)/python docs/figures/proxy_norm.py --out=docs/images/proxy_norm.png

$(VENV)/.installed: setup.cfg
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -q -e ".[dev]"
	touch $@

.venv-backends/.installed: setup.cfg
	$(PYTHON) -m venv .venv-backends
	.venv-backends/bin/pip install -q $(TORCH)
	.venv-backends/bin/pip install -q -e ".[dev,backends]"
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/pip install -q -e ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) .venv-backends build dist site *.egg-info
