#!/usr/bin/env bash
# Lint, types, import order, tests.
#   bash launch_scripts/run_tests.sh          everything that CI runs
#   bash launch_scripts/run_tests.sh fast     without the tests marked slow: under 5 minutes
#   bash launch_scripts/run_tests.sh full     every test, kill and fault tests at their full counts
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
case "${1:-}" in
  "") select="not full" ;;
  fast) select="not slow and not full" ;;
  full) select="" ;;
  *) echo "run_tests.sh: unknown argument '$1'; give none, fast or full" >&2; exit 2 ;;
esac
bash launch_scripts/install.sh dev
export PATH="$PWD/.venv/bin:$PATH"
ruff format --check .
ruff check .
mypy
lint-imports --no-logo
MEGATRON_SYNTH_TESTS=${1:-ci} python -m pytest -m "$select"
