#!/usr/bin/env bash
# Lint, type-check, check imports and run the tests in .venv, which it makes. No model hub is needed.
#   scripts/test.sh              everything but the slow cases
#   scripts/test.sh --slow       the slow cases alone
#   scripts/test.sh -- ARGS      pytest with these arguments, without the checks
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh

mode="${1:-}"
case "$mode" in
"" | --slow | --) ;;
*)
    echo "Error: unknown argument '$mode'. Usage: scripts/test.sh [--slow | -- PYTEST ARGUMENTS]" >&2
    exit 2
    ;;
esac

make_environment "deepspeed,demo,dev,serve,wandb"
export PATH="$PWD/.venv/bin:$PATH" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" TOKENIZERS_PARALLELISM=false
export HF_HUB_OFFLINE=1 WANDB_MODE=offline

say "Fetching what the tests need (kept in ${PRISMCAP_CACHE:-$HOME/.cache/prismcap})"
prismcap fetch smollm2 efficientnet openmoji
fetch_stamps || echo "(the Tux Paint stamps are not to be had here: their tests will be skipped)"

case "$mode" in
"")
    say "ruff, mypy, import-linter"
    ruff check .
    ruff format --check .
    scripts/typecheck.sh
    lint-imports
    say "Tests"
    exec python -m pytest -m "not slow and not gpu" -n "${TEST_PROCESSES:-2}" --dist loadfile
    ;;
--slow)
    say "Slow tests"
    exec python -m pytest -m "slow and not gpu" -n "${TEST_PROCESSES:-2}" --dist loadfile
    ;;
--)
    shift
    exec python -m pytest "$@"
    ;;
esac
