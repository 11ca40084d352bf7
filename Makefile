# Two commands do all: `make quickstart` and `make test`. Both set up .venv themselves; a second call finds it ready.
PYTHON := .venv/bin/python
INSTALLED := .venv/.installed

.PHONY: quickstart test lint lock clean

quickstart: $(INSTALLED)  ## the main job: three students, one table, one picture
	$(PYTHON) -m experiments.quickstart

test: $(INSTALLED)  ## the whole test suite
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m pytest -n 2 --dist loadgroup

lint: $(INSTALLED)  ## style and types
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m pyright

lock:  ## pin the newest versions that pyproject.toml allows, on top of the accelerator image's jax
	uv pip compile --quiet --universal --no-annotate --no-header --no-emit-index-url --generate-hashes --python-version 3.12 \
		--extra verify --extra report --extra serve --extra dev --constraint constraints.txt pyproject.toml --output-file requirements.lock

clean:
	rm -rf .venv

$(INSTALLED): requirements.lock pyproject.toml scripts/install.sh
	bash scripts/install.sh
