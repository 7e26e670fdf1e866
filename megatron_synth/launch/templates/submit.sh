#!/bin/bash
# Submits every step of experiment {{ experiment }}, each after the steps that it needs. Made by `megatron-synth launch render`.
# `megatron-synth launch submit` does the same and leaves out what is done already; either can be run again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
{{ python }} -m megatron_synth.launch.prepare {{ run | quote }}
declare -A job
{% for step in steps %}
job[{{ step.name }}]=$(sbatch --parsable{{ step.after }} {{ step.file | quote }})
{% endfor %}
for step in "${!job[@]}"; do printf '%s\t%s\n' "${job[$step]}" "$step"; done | sort -n
