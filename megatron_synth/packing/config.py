"""How documents become token ids."""

from typing import Annotated

from pydantic import Field, model_validator

from megatron_synth.config import Config
from megatron_synth.corpus.columns import Columns
from megatron_synth.tokens import SpecialPolicy


class PackConfig(Config):
    """What a packed corpus holds; equal settings and inputs give equal files."""

    keys: Annotated[tuple[str, ...], Field(min_length=1)] = ("text",)
    """Columns to pack, each into a dataset of its own, `PREFIX_KEY_document`. A row that lacks
    one of them is a bad row."""
    id_column: str = "id"
    """Column of the id; rows without one are named `FILE:LINE`."""
    sentences: bool = False
    """A text may be a list of strings: each becomes a sequence of its document, as in
    Megatron-LM's preprocessing. Otherwise such a row is a bad row."""
    beginning_of_text: bool = False
    """Put BOS before each document; the tokenizer must have one."""
    end_of_text: bool = True
    """Put EOS after each document."""
    special_tokens: SpecialPolicy = "text"
    """What a special token's spelling inside a document becomes: `text` the ordinary text that
    it is, `reject` sets the row aside, `keep` makes the control token."""
    provenance: bool = True
    """Write the side table that names document i's id, source and method."""
    quarantine_limit: float = Field(default=0.01, ge=0, le=1)
    """Share of rows that may be no documents before packing fails."""
    output_mb: Annotated[int, Field(ge=1)] | None = None
    """Write many datasets, `PREFIX-00000_text_document` and so on, each from about this many MB of
    input files; None writes one."""

    @model_validator(mode="after")
    def _keys_differ(self) -> "PackConfig":
        if len(set(self.keys)) != len(self.keys):
            raise ValueError("a key is named twice")
        for key in self.keys:
            if not key or "/" in key or not key.isprintable():
                raise ValueError(f"the key {key!r} cannot be part of a file's name")
        if self.provenance and self.id_column in self.keys:
            raise ValueError(f"{self.id_column!r} cannot be both the id and a text")
        return self

    @property
    def columns(self) -> Columns:
        """The columns to read."""
        # What lists mean to Megatron-LM's tool is never mixed with what they mean to us.
        parts = "text" in self.keys and "parts" not in self.keys and not self.sentences
        return Columns(self.keys, self.id_column, self.provenance, self.sentences, parts)
