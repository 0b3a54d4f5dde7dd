# make demo   the whole story on synthetic images, in minutes on a CPU      make test lint types   what must pass
# PYTHON picks the interpreter (3.11 or 3.12), VENV the environment's folder. The environment is made once.

usable = command -v $(1) >/dev/null && $(1) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do if $(call usable,$$p); then echo $$p; break; fi; done)
VENV ?= .venv
PY = $(VENV)/bin/python
DEMO = runs/demo

.PHONY: demo install dev test lint format types wheel clean

demo: install
	$(PY) -m nest_jax.main --config=configs/shapes.py:method=mib,classifier_init=background --workdir=$(DEMO)/mib
	$(PY) -m nest_jax.main --config=configs/shapes.py:method=mib,classifier_init=nest --workdir=$(DEMO)/mib_nest \
	  --config.init_from=$(DEMO)/mib
	$(PY) -m nest_jax.compare $(DEMO)/mib $(DEMO)/mib_nest --out $(DEMO)
	$(PY) -m nest_jax.report --workdir MiB+NeST=$(DEMO)/mib_nest --compare MiB=$(DEMO)/mib --out $(DEMO)/report

install: $(VENV)/.installed
dev: $(VENV)/.dev

$(PY):
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or 3.12 found; name one: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(PY)
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[report]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(PY)
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[dev,lite]'
	@touch $@ $(VENV)/.installed

test: dev
	$(PY) -m pytest -n auto --dist loadfile

lint: dev
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .

format: dev
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

types: dev
	$(PY) -m pyright --pythonpath $(PY)

# The wheel, installed without the checkout, still has the configs.
wheel: dev
	rm -rf build && $(PY) -m build --wheel --no-isolation --outdir build/dist .
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --target build/installed build/dist/*.whl
	cd build && PYTHONPATH=$(CURDIR)/build/installed $(abspath $(PY)) -m nest_jax.main --config=configs/shapes.py --validate_only
	ls build/installed/nest_jax/configs

clean:
	rm -rf build $(DEMO) .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
