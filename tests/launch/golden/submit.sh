#!/bin/bash
# Submits every step of experiment sbp_200b, each after the steps that it needs. Made by `megatron-synth launch render`.
# `megatron-synth launch submit` does the same and leaves out what is done already; either can be run again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
python -m megatron_synth.launch.prepare /lustre/me/runs/sbp_200b
declare -A job
job[corpus.import]=$(sbatch --parsable corpus.import.sbatch)
job[tokenizer]=$(sbatch --parsable --dependency=afterok:"${job[corpus.import]}" --kill-on-invalid-dep=yes tokenizer.sbatch)
job[corpus.split]=$(sbatch --parsable --dependency=afterok:"${job[corpus.import]}":"${job[tokenizer]}" --kill-on-invalid-dep=yes corpus.split.sbatch)
job[pack.organic]=$(sbatch --parsable --dependency=afterok:"${job[corpus.split]}":"${job[tokenizer]}" --kill-on-invalid-dep=yes pack.organic.sbatch)
job[pack.pool]=$(sbatch --parsable --dependency=afterok:"${job[corpus.split]}":"${job[tokenizer]}" --kill-on-invalid-dep=yes pack.pool.sbatch)
job[pack.validation]=$(sbatch --parsable --dependency=afterok:"${job[corpus.split]}":"${job[tokenizer]}" --kill-on-invalid-dep=yes pack.validation.sbatch)
job[embed]=$(sbatch --parsable --dependency=afterok:"${job[corpus.split]}" --kill-on-invalid-dep=yes embed.sbatch)
job[plan.repeat]=$(sbatch --parsable --dependency=afterok:"${job[pack.organic]}" --kill-on-invalid-dep=yes plan.repeat.sbatch)
job[plan.unique]=$(sbatch --parsable --dependency=afterok:"${job[pack.pool]}" --kill-on-invalid-dep=yes plan.unique.sbatch)
job[pairs]=$(sbatch --parsable --dependency=afterok:"${job[corpus.split]}":"${job[embed]}" --kill-on-invalid-dep=yes pairs.sbatch)
job[train.repeat]=$(sbatch --parsable --dependency=afterok:"${job[plan.repeat]}":"${job[tokenizer]}":"${job[pack.validation]}":"${job[pack.organic]}" --kill-on-invalid-dep=yes train.repeat.sbatch)
job[audit.repeat]=$(sbatch --parsable --dependency=afterok:"${job[plan.repeat]}":"${job[pack.organic]}" --kill-on-invalid-dep=yes audit.repeat.sbatch)
job[train.unique]=$(sbatch --parsable --dependency=afterok:"${job[plan.unique]}":"${job[tokenizer]}":"${job[pack.validation]}":"${job[pack.pool]}" --kill-on-invalid-dep=yes train.unique.sbatch)
job[audit.unique]=$(sbatch --parsable --dependency=afterok:"${job[plan.unique]}":"${job[pack.pool]}" --kill-on-invalid-dep=yes audit.unique.sbatch)
job[pairs.split]=$(sbatch --parsable --dependency=afterok:"${job[pairs]}" --kill-on-invalid-dep=yes pairs.split.sbatch)
job[evaluate.repeat]=$(sbatch --parsable --dependency=afterok:"${job[train.repeat]}":"${job[corpus.split]}":"${job[tokenizer]}" --kill-on-invalid-dep=yes evaluate.repeat.sbatch)
job[evaluate.unique]=$(sbatch --parsable --dependency=afterok:"${job[train.unique]}":"${job[corpus.split]}":"${job[tokenizer]}" --kill-on-invalid-dep=yes evaluate.unique.sbatch)
job[train.synthesizer]=$(sbatch --parsable --dependency=afterok:"${job[pairs.split]}":"${job[pack.organic]}":"${job[tokenizer]}":"${job[train.repeat]}" --kill-on-invalid-dep=yes train.synthesizer.sbatch)
job[export.synthesizer]=$(sbatch --parsable --dependency=afterok:"${job[train.synthesizer]}":"${job[tokenizer]}" --kill-on-invalid-dep=yes export.synthesizer.sbatch)
job[synthesize]=$(sbatch --parsable --dependency=afterok:"${job[corpus.split]}":"${job[tokenizer]}":"${job[export.synthesizer]}" --kill-on-invalid-dep=yes synthesize.sbatch)
job[pack.synthetic]=$(sbatch --parsable --dependency=afterok:"${job[synthesize]}":"${job[tokenizer]}" --kill-on-invalid-dep=yes pack.synthetic.sbatch)
job[plan.sbp]=$(sbatch --parsable --dependency=afterok:"${job[pack.synthetic]}":"${job[pack.organic]}" --kill-on-invalid-dep=yes plan.sbp.sbatch)
job[train.sbp]=$(sbatch --parsable --dependency=afterok:"${job[plan.sbp]}":"${job[tokenizer]}":"${job[pack.validation]}":"${job[pack.synthetic]}":"${job[pack.organic]}" --kill-on-invalid-dep=yes train.sbp.sbatch)
job[audit.sbp]=$(sbatch --parsable --dependency=afterok:"${job[plan.sbp]}":"${job[pack.synthetic]}":"${job[pack.organic]}" --kill-on-invalid-dep=yes audit.sbp.sbatch)
job[evaluate.sbp]=$(sbatch --parsable --dependency=afterok:"${job[train.sbp]}":"${job[corpus.split]}":"${job[tokenizer]}" --kill-on-invalid-dep=yes evaluate.sbp.sbatch)
job[compare]=$(sbatch --parsable --dependency=afterok:"${job[evaluate.repeat]}":"${job[evaluate.sbp]}":"${job[evaluate.unique]}" --kill-on-invalid-dep=yes compare.sbatch)
for step in "${!job[@]}"; do printf '%s\t%s\n' "${job[$step]}" "$step"; done | sort -n
