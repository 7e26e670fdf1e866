"""Several arms on the same documents: each one's loss, and its difference to the baseline."""

from collections.abc import Mapping
from dataclasses import dataclass

from megatron_synth.config import ConfigError
from megatron_synth.evaluation.bootstrap import Interval, paired_bootstrap
from megatron_synth.evaluation.losses import DocumentLosses, mean_loss, same_documents

FEW_CLUSTERS = 30
"""With fewer, percentile intervals of clusters are known to be too narrow."""


@dataclass(frozen=True)
class ArmComparison:
    """One arm's held-out loss.

    Attributes:
        name: The arm.
        loss: Mean loss, nats per token.
        error: Its standard error over clusters; None where all documents are one cluster.
        difference: Loss minus the baseline's, with its paired interval; None for the baseline,
            and for every arm where all documents are one cluster.
        documents: How many documents were scored.
        tokens: How many tokens were predicted.
        clusters: Independent draws among the documents: groups, and documents without one.
    """

    name: str
    loss: float
    error: float | None
    difference: Interval | None
    documents: int
    tokens: int
    clusters: int

    @property
    def few_clusters(self) -> bool:
        """Whether there are so few that intervals are too narrow (coverage below the nominal)."""
        return self.clusters < FEW_CLUSTERS


def compare_arms(
    arms: Mapping[str, DocumentLosses],
    baseline: str,
    *,
    seed: int = 0,
    resamples: int = 10_000,
) -> list[ArmComparison]:
    """Losses of all arms and paired differences to `baseline`, in the order given.

    Raises:
        ConfigError: There is no arm of that name.
        DataError: The arms were not measured on the same documents.
    """
    if baseline not in arms:
        raise ConfigError(
            f"no arm is named {baseline!r}", fix=f"There are: {', '.join(arms) or 'none'}."
        )
    same_documents(*arms.values())
    base = arms[baseline]
    result = []
    for name, losses in arms.items():
        mean, error = mean_loss(losses.nll_sum, losses.tokens, groups=losses.groups)
        difference = None
        if name != baseline and base.clusters > 1:
            difference = paired_bootstrap(
                losses.nll_sum, base.nll_sum, losses.tokens, seed, resamples, groups=base.groups
            )
        documents, tokens = len(losses.ids), int(losses.tokens.sum())
        result.append(
            ArmComparison(
                name=name,
                loss=mean,
                error=error if base.clusters > 1 else None,
                difference=difference,
                documents=documents,
                tokens=tokens,
                clusters=base.clusters,
            )
        )
    return result
