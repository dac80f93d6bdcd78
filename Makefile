# Two commands for a fresh machine with Python >= 3.11, make and a package index:
#   make audit   audits compressed versions of a small CNN on real data and writes crushproof-audit/report.html
#   make test    runs every check
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= crushproof-audit
MINUTES ?= 10

.PHONY: audit test lint types layers docs pytest fuzz format clean

audit: $(VENV)/.runtime
	@touch $(VENV)/.started  # a report that is older is not this run's
	@$(BIN)/crushproof audit --out $(OUT); code=$$?; \
	case $$code in 0|1|3) test $(OUT)/report.html -nt $(VENV)/.started || exit $$code ;; *) exit $$code ;; esac; \
	echo; echo "Open the report: $(CURDIR)/$(OUT)/report.html   (verdict's exit code: $$code)"

test: lint types layers docs pytest

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The package is the repository's root, whatever the checkout's folder is called: mypy sees it through a link.
types: $(VENV)/.test
	@mkdir -p $(VENV)/link && ln -sfn "$(CURDIR)" $(VENV)/link/crushproof
	cd $(VENV)/link && ../bin/mypy --config-file crushproof/pyproject.toml --cache-dir ../mypy_cache -m crushproof \
		$(foreach part,audit attacks defenses compression training targets report_templates,-p crushproof.$(part))

layers: $(VENV)/.test
	$(BIN)/lint-imports --no-cache

docs: $(VENV)/.test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

pytest: $(VENV)/.test
	@# In conftest's order, the longest files first. What is compiled once serves the many processes that tests start.
	@# Two processes fill two cores: more threads of theirs would wait for one another, and take a fifth more to do it.
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -q

# All hostile inputs of the tests, then mutants with new seeds for MINUTES; one that fails is printed and kept in fuzz-failures.
fuzz: $(VENV)/.test
	PYTHONPATH=tests/helpers $(BIN)/python tests/hostile/fuzz.py --minutes $(MINUTES)

format: $(VENV)/.test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/.venv:
	$(PYTHON) -c 'import sys; sys.exit("crushproof needs Python 3.11 or newer: make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.runtime: $(VENV)/.venv pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0 -e .
	@touch $@

$(VENV)/.test: $(VENV)/.venv pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0 -e ".[test,docs]"
	@touch $@ $(VENV)/.runtime

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
