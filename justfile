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

quickstart:
    tokenflex quickstart --out runs/quickstart

ci:
    .ci/run
