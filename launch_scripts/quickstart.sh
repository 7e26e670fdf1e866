#!/usr/bin/env bash
# Does Synthetic Bootstrapped Pretraining beat repetition at equal compute, on this machine's own text?
#   bash launch_scripts/quickstart.sh [KEY=VALUE …]      overrides of examples/quickstart.yaml, e.g. corpus.input=my.jsonl
# Installs the pinned stack into .venv, runs the example, and says where the report is. A second run costs nothing.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/launch_scripts/install.sh"
# Paths in overrides are relative to where this is called from.
exec "$root/.venv/bin/megatron-synth" run "$root/examples/quickstart.yaml" --out "$root/runs/quickstart" "$@"
