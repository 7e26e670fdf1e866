"""The whole blend as one dataset: sample i, from whichever corpus the plan says."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np
import torch
from megatron.core.datasets.indexed_dataset import IndexedDataset

from megatron_synth.blending.chain import Chain
from megatron_synth.blending.index_files import IndexFolder
from megatron_synth.blending.plan import Plan, PlannedCorpus
from megatron_synth.blending.schedule import schedule_of
from megatron_synth.blending.sizes import CorpusSize, measure, nearest_name, path_prefix
from megatron_synth.blending.sources import SourceConfig
from megatron_synth.blending.windows import CorpusWindows, Sample, TokenSource
from megatron_synth.config import ConfigError, DataError


class BlendedStreams(torch.utils.data.Dataset[Sample]):
    """All windows of a plan, in order: a map-style dataset of plan.samples items.

    Item i (in [0, plan.samples); global batch b is items b*G to b*G + G - 1) is a dict:

    - `tokens` int64[S], `labels` int64[S]: labels are shifted by one, inside one text of S + 1;
    - `loss_mask` float32[S]: all ones;
    - `position_ids` int64[S]: 0 to S - 1 (attention `document`: anew from 0 in each document);
    - `dataset_id` int: the corpus's index in `plan.corpora`;
    - with attention `document` also `cu_seqlens` int32[S + 1], where documents begin, then S
      until the end of the array, and `max_seqlen` int.

    The content depends on the plan and i alone, never on ranks, workers or restarts. It can be
    pickled; workers open the files for themselves. Fetching a batch through `__getitems__`, as
    PyTorch's DataLoader does, is faster than item by item.

    Args:
        plan: The plan.
        prefixes: Path of each corpus that the plan trains on, with or without `_text_document`;
            where one is not given, the plan's own.
        folder: Where this node keeps the indices of large corpora (see `index_files`).
        check: Compare counts and content hashes with the plan. Where packing wrote no `.json`
            this reads the whole corpus; with several processes on a machine, one check is enough.

    Raises:
        ConfigError: A corpus of the plan has no prefix.
        DataError: Files are missing, damaged, or not what was planned.
    """

    def __init__(
        self,
        plan: Plan,
        prefixes: Mapping[str, str | Path] | None = None,
        *,
        folder: IndexFolder | None = None,
        check: bool = True,
        _measured: dict[str, CorpusSize] | None = None,
    ) -> None:
        if plan.order != "strict":
            raise ConfigError(
                f"the plan has order: {plan.order}",
                where="blend.order",
                fix="Open it with megatron_synth.blending.stock.",
            )
        self.plan = plan
        self._schedule = schedule_of(plan)
        measured = {} if _measured is None else _measured
        self._corpora = {
            index: _open(plan, corpus, prefixes or {}, folder, None if not check else measured)
            for index, corpus in enumerate(plan.corpora)
            if corpus.windows
        }
        self._starts = np.array([c.start for c in plan.corpora], dtype=np.int64)

    def with_tokens(self, tokens: Mapping[int, TokenSource]) -> Self:
        """The same samples, read from other tokens (by `dataset_id`); the audit traces so.

        Args:
            tokens: For each corpus that is served, something that `[begin:end]` gives the
                integers of tokens begin to end - 1 of its `.bin` from.
        """
        other = copy.copy(self)
        other._corpora = {
            index: opened.with_tokens(tokens[index]) for index, opened in self._corpora.items()
        }
        return other

    def __len__(self) -> int:
        """plan.samples."""
        return self.plan.samples

    def __getitem__(self, sample: int) -> Sample:
        """Sample `sample`; IndexError past the end."""
        return self.__getitems__([sample])[0]

    def __getitems__(self, samples: list[int]) -> list[Sample]:
        """Several samples, in the order asked for."""
        wanted = np.asarray(samples, dtype=np.int64)
        if wanted.size == 0:
            return []
        if wanted.min() < 0 or wanted.max() >= len(self):
            raise IndexError(f"sample {wanted.min()}..{wanted.max()} of {len(self)}")
        corpora, numbers = self._schedule.locate(wanted)
        result: list[Sample] = [{} for _ in samples]
        for index, opened in self._corpora.items():
            here = np.flatnonzero(corpora == index)
            if here.size:
                served = opened.windows(numbers[here] + self._starts[index])
                for place, sample in zip(here.tolist(), served, strict=True):
                    sample["dataset_id"] = index
                    result[place] = sample
        return result


class ChainedStreams(torch.utils.data.Dataset[Sample]):
    """All windows of a run in phases: sample i of the run, from the phase that serves it.

    Items are those of `BlendedStreams`; `dataset_id` means the same corpus in every phase.

    Args:
        chain: The phases. Samples before its first step cannot be read.
        prefixes: As in `BlendedStreams`, for the corpora of all phases.
        folder: As in `BlendedStreams`.
        check: As in `BlendedStreams`.

    Raises:
        ConfigError, DataError: As `BlendedStreams`.
    """

    def __init__(
        self,
        chain: Chain,
        prefixes: Mapping[str, str | Path] | None = None,
        *,
        folder: IndexFolder | None = None,
        check: bool = True,
    ) -> None:
        self.chain = chain
        measured: dict[str, CorpusSize] = {}  # each corpus is looked at once, not once a phase
        self._phases = [
            BlendedStreams(plan, prefixes, folder=folder, check=check, _measured=measured)
            for plan in chain.plans
        ]

    def __len__(self) -> int:
        """Samples up to the end of the last phase, those before the chain counted in."""
        return self.chain.steps * self.chain.batch

    def __getitem__(self, sample: int) -> Sample:
        """Sample `sample` of the run; IndexError outside the chain."""
        return self.__getitems__([sample])[0]

    def __getitems__(self, samples: list[int]) -> list[Sample]:
        """Several samples, in the order asked for."""
        batch, result = self.chain.batch, dict[int, Sample]()
        by_phase: dict[int, list[int]] = {}
        for place, sample in enumerate(samples):
            if not self.chain.first_step * batch <= sample < len(self):
                raise IndexError(f"sample {sample} of {len(self)}")
            by_phase.setdefault(self.chain.phase(sample // batch + 1), []).append(place)
        for phase, places in by_phase.items():
            first = self.chain.plans[phase].first_step * batch
            served = self._phases[phase].__getitems__([samples[p] - first for p in places])
            result.update(zip(places, served, strict=True))
        return [result[place] for place in range(len(samples))]


def _open(
    plan: Plan,
    corpus: PlannedCorpus,
    prefixes: Mapping[str, str | Path],
    folder: IndexFolder | None,
    measured: dict[str, CorpusSize] | None,
) -> CorpusWindows:
    """Open one corpus; with `measured`, what is known so far, check that it is the planned one."""
    data = prefixes.get(corpus.name) or (corpus.source and corpus.source.data)
    if not data:
        raise ConfigError(
            f"the plan trains on corpus {corpus.name!r}, but no prefix is given for it",
            where="blend",
            fix=nearest_name(corpus.name, prefixes),
        )
    if corpus.content_hash is None:
        raise ConfigError(
            f"corpus {corpus.name!r} is planned from declared counts: the plan is provisional",
            where="blend",
            fix="Solve the plan again now that the corpus is packed.",
        )
    path = path_prefix(data)
    if measured is not None:
        source = corpus.source or SourceConfig(data=path)
        here = source.model_copy(update={"data": path, "declared": None})
        key = here.model_dump_json()
        if key not in measured:
            measured[key] = measure(here, where=corpus.name, folder=folder)
        size = measured[key]
        if corpus.content_hash != size.content_hash:
            raise _not_as_planned(corpus, path, f"content {str(size.content_hash)[:12]}")
        if (size.tokens, size.documents) != (corpus.tokens, corpus.documents):
            raise _not_as_planned(corpus, path, f"{size.tokens:,} tokens")
    return CorpusWindows(IndexedDataset(str(path)), path, plan, corpus, folder)


def _not_as_planned(corpus: PlannedCorpus, path: Path, found: str) -> DataError:
    planned = f"{corpus.tokens:,} tokens, {corpus.documents:,} documents"
    content = f", content {corpus.content_hash[:12]}" if corpus.content_hash else ""
    return DataError(
        f"corpus {corpus.name!r} is not what was planned: {found} here, {planned}{content} in the "
        "plan",
        where=path,
        fix="Solve the plan again for this data, or restore the data that was planned.",
    )
