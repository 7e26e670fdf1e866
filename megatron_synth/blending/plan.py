"""The plan: exactly which windows of which corpora are trained on. A record, no arithmetic."""

import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError

from megatron_synth.blending.sources import SourceConfig
from megatron_synth.blending.table import render_table
from megatron_synth.config import Config, DataError
from megatron_synth.runs import hash_json, write_json

_FORMAT = 2


class PlannedCorpus(Config):
    """One corpus of a plan. All counts are exact."""

    name: str
    stream: str
    """The stream it belongs to; its own name where it is a stream by itself."""
    asked: str
    """The amount in the config, in words."""
    tokens: int
    """Tokens of the corpus: one epoch, dropped remainder included."""
    documents: int
    content_hash: str | None
    """None: not made yet, planned from declared counts."""
    tokenizer: str | None
    windows_per_epoch: int
    """(tokens - 1) // sequence_length."""
    dropped_per_epoch: int
    """Tokens at the end of each epoch that fill no window, 0 to sequence_length - 1."""
    start: int
    """Windows of it that earlier phases have served."""
    windows: int
    """Windows of it that this plan serves."""
    max_epochs: float | None
    reshuffle: bool
    source: SourceConfig | None = None
    """Where it lies, and which of its documents are meant; None: told when the plan is opened."""

    @property
    def epochs(self) -> float:
        """Passes over the corpus in this plan: windows / windows_per_epoch."""
        return self.windows / self.windows_per_epoch if self.windows else 0.0


class Plan(Config):
    """An exact plan of a training run, or of one phase of it.

    Window number n of a corpus (n counts from its first phase) is window n % windows_per_epoch of
    the permutation of its epoch n // windows_per_epoch. `hash` names everything that decides
    which tokens sample i holds; it goes into checkpoints.
    """

    sequence_length: int
    global_batch_size: int
    seed: int
    attention: Literal["cross", "document"]
    order: Literal["strict", "megatron"] = "strict"
    steps: int
    corpora: tuple[PlannedCorpus, ...]
    """In the order of `dataset_id`."""
    first_step: int = 0
    """Steps of the phases before this one."""
    previous: str | None = None
    """Hash of the plan of the phase before."""
    budget: str = ""
    """The budget in the config, in words; empty: what the amounts come to."""
    streams: dict[str, str] = Field(default_factory=dict)
    """The amount in the config, in words, of each stream that divides one among its corpora."""

    @property
    def samples(self) -> int:
        """Windows in all: steps x global_batch_size."""
        return self.steps * self.global_batch_size

    @property
    def tokens(self) -> int:
        """Tokens trained on: samples x sequence_length."""
        return self.samples * self.sequence_length

    @property
    def hash(self) -> str:
        """Equal for two plans exactly if every sample holds the same tokens.

        Covers the format's version, lengths, seed, attention, order, and of each corpus its name
        (its permutations are drawn by it), counts, content hash (which names its selection too),
        tokenizer, start, windows, reshuffle. Paths, streams' names and the wording of the config
        are not in it. Of a plan from declared counts (content hashes None) it says nothing of
        contents; such a plan is not served. With `order: megatron` stock's options and version
        decide too.
        """
        return hash_json(
            {
                "format": _FORMAT,
                **self.model_dump(
                    include={
                        *("sequence_length", "global_batch_size", "seed", "attention", "order"),
                        "steps",
                    }
                ),
                "corpora": [
                    c.model_dump(
                        include={
                            *("name", "tokens", "documents", "content_hash", "tokenizer"),
                            *("start", "windows", "reshuffle"),
                        }
                    )
                    for c in self.corpora
                ],
            }
        )

    def corpus(self, name: str) -> PlannedCorpus:
        """The corpus called `name`; KeyError if there is none."""
        return {c.name: c for c in self.corpora}[name]

    def share(self, name: str) -> float:
        """Share of this plan's windows that `name` has."""
        return self.corpus(name).windows / self.samples

    def summary(self) -> dict[str, Any]:
        """The plan in figures, as a dict that JSON can hold.

        By corpus: `tokens` (trained on), `share`, `epochs`, `windows`, `cap` (max_epochs or None),
        `dropped_tokens` (remainders of the epochs that this plan finishes), `epochs_before`, and
        what the corpus is: `corpus_tokens`, `documents`, `windows_per_epoch`, `declared`. By
        stream: `tokens`, `share`, `windows`.
        """
        length = self.sequence_length
        corpora, streams = {}, dict[str, dict[str, Any]]()
        for c in self.corpora:
            whole = max(1, c.windows_per_epoch)
            finished = (c.start + c.windows) // whole - c.start // whole
            corpora[c.name] = {
                "stream": c.stream,
                "asked": c.asked,
                "tokens": c.windows * length,
                "share": self.share(c.name),
                "epochs": c.epochs,
                "windows": c.windows,
                "cap": c.max_epochs,
                "dropped_tokens": finished * c.dropped_per_epoch,
                "epochs_before": c.start / whole,
                "corpus_tokens": c.tokens,
                "documents": c.documents,
                "windows_per_epoch": c.windows_per_epoch,
                "declared": c.content_hash is None,
            }
            stream = streams.setdefault(c.stream, {"tokens": 0, "share": 0.0, "windows": 0})
            stream["windows"] += c.windows
            stream["tokens"] = stream["windows"] * length
            stream["share"] = stream["windows"] / self.samples
        return {
            "plan": self.hash,
            "steps": self.steps,
            "first_step": self.first_step,
            "samples": self.samples,
            "tokens": self.tokens,
            "sequence_length": length,
            "global_batch_size": self.global_batch_size,
            "corpora": corpora,
            "streams": streams,
        }

    def table(self) -> str:
        """The plan as plain text, for people: one line a corpus, then the total."""
        header = [
            f"{self.steps:,} steps x {self.global_batch_size:,} windows x "
            f"{self.sequence_length:,} tokens = {self.tokens:,} tokens (seed {self.seed}, "
            f"attention {self.attention}, order {self.order}, plan {self.hash[:12]})",
            "Weights count tokens after packing, each document's EOS included. Epochs are windows "
            "/ windows an epoch.",
        ]
        if self.first_step:
            header.append(f"A phase: goes on after step {self.first_step:,}.")
        columns = (
            *("corpus", "stream", "asked", "documents", "tokens", "windows/epoch"),
            *("dropped/epoch", "windows", "trained tokens", "share", "epochs", "cap"),
            *(("epochs before",) if self.first_step else ()),
        )
        rows = [
            (
                c.name,
                c.stream,
                c.asked,
                f"{c.documents:,}" + ("" if c.content_hash else " (declared)"),
                f"{c.tokens:,}",
                f"{c.windows_per_epoch:,}",
                f"{c.dropped_per_epoch:,}",
                f"{c.windows:,}",
                f"{c.windows * self.sequence_length:,}",
                f"{100 * self.share(c.name):.2f} %",
                f"{c.epochs:.4g}",
                "-" if c.max_epochs is None else f"{c.max_epochs:g}",
                *((f"{c.start / max(1, c.windows_per_epoch):.4g}",) if self.first_step else ()),
            )
            for c in self.corpora
        ]
        total = ["total", *("",) * 6, f"{self.samples:,}", f"{self.tokens:,}", "100.00 %"]
        total += [""] * (len(columns) - len(total))
        body = render_table(columns, [*rows, total], left=3)
        return "\n".join([*header, "", body])

    def save(self, path: Path) -> None:
        """Write the plan as JSON, atomically; format, hash and checksum stand in the file."""
        content = {"format": _FORMAT, **self.model_dump(mode="json"), "hash": self.hash}
        write_json(path, {**content, "checksum": hash_json(content)})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a plan that `save` wrote.

        Raises:
            DataError: No such file, not a plan, of another format, or changed since written.
        """
        if not path.is_file():
            raise DataError("no such plan", where=path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            checksum, written = content.pop("checksum"), hash_json(content)
            version = content.pop("format")
            del content["hash"]
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise DataError(f"not a blend plan: {error}", where=path) from error
        again = "Solve the plan again: megatron-synth blend plan … --out FOLDER."
        if version != _FORMAT:
            raise DataError(
                f"is of format {version}, this version reads {_FORMAT}", where=path, fix=again
            )
        if checksum != written:
            raise DataError("was changed since it was written", where=path, fix=again)
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise DataError(f"not a blend plan: {error}", where=path) from error
