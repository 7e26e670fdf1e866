"""Checkpoints' losses in, figures with their uncertainty out.

In: per-document sums of negative log-likelihood (`training.document_losses`). Out: mean token
losses with standard errors, and paired bootstrap intervals between arms that were measured on the
same documents; where those were held out by group, over groups. Cost: 10,000 resamples of 1,000
documents take a tenth of a second.

Analyses of corpora: documents in, the quality table and what synthetic documents share with their
seeds out (`quality`, `concepts`), by rules and by a judge's engine. Cost: 4 minutes a million
documents, and the judge.
"""

from megatron_synth.evaluation.arms import FEW_CLUSTERS, ArmComparison, compare_arms
from megatron_synth.evaluation.bootstrap import Interval, paired_bootstrap, resampled_sums
from megatron_synth.evaluation.losses import (
    DocumentLosses,
    mean_loss,
    read_losses,
    same_documents,
    write_losses,
)

__all__ = [
    "FEW_CLUSTERS",
    "ArmComparison",
    "DocumentLosses",
    "Interval",
    "compare_arms",
    "mean_loss",
    "paired_bootstrap",
    "read_losses",
    "resampled_sums",
    "same_documents",
    "write_losses",
]
