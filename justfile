# The same commands as in CI.
fmt:
    ruff format .
    ruff check --fix .

lint:
    ruff format --check .
    ruff check .
    lint-imports

type:
    pyright

test:
    pytest

# The sweeps that take too long for every change: all laws on every architecture, benchmarks, Ray.
slow *args:
    pytest -m slow {{args}}

# Each plugin's own tests, on what is installed: pip install -e . ./plugins/*
plugins:
    for plugin in plugins/*/; do pytest "$plugin/tests" -c "$plugin/pyproject.toml" || exit 1; done

# The site of docs/, into build/site; needs pip install -e ".[docs]". For writing: mkdocs serve.
docs *args:
    mkdocs build --strict {{args}}

quickstart:
    tokenflex quickstart --out runs/quickstart

# The study on pretrained weights, with a seed; needs two packages with weights (docs/study.md).
study seed="0":
    tokenflex study --out runs/study_{{seed}} --seed {{seed}}

# What wants a GPU, most valuable first; started again it goes on where it was.
gpu minutes="8" out="runs/gpu":
    python -m benchmarks.gpu --minutes {{minutes}} --out {{out}}

ci:
    .ci/run

# vLLM on the CPU: makes an environment for it once (4 GB), then compares what it answers with FlexModel.generate.
vllm env=".venv-vllm":
    test -x {{env}}/bin/vllm || plugins/tokenflex-vllm/make_env {{env}}
    for file in plugins/tokenflex-vllm/tests/test_*.py; do {{env}}/bin/python -m pytest $file -rs -c plugins/tokenflex-vllm/pyproject.toml || exit 1; done

# transformers' own tests on FlexModel beside the plain host (docs/clients.md); needs the network and pip install parameterized.
hf-suite *args:
    python -m tests.hf_suite {{args}}

# Every fault, tried in numbers; renews the tables of docs/reliability.md (about half an hour on 2 cores).
torture scale="1":
    python -m tests.torture --scale {{scale}} --write

# The lowest versions that pyproject.toml names, in a fresh environment.
lowest *args:
    .ci/lowest {{args}}

# What is installed against the public list of known vulnerabilities (needs the network), and its licences.
audit:
    pip install --quiet pip-audit
    pip-audit --skip-editable
    python -m tests.supply.licences

# Source distribution and wheels into dist/, looked at as PyPI would; uploads nothing.
release:
    rm -rf dist
    pip install --quiet build twine
    python -m build --outdir dist .
    for plugin in plugins/*/; do python -m build --wheel --outdir dist "$plugin" || exit 1; done
    twine check --strict dist/*
