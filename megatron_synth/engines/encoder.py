"""Token ids to pooled states, by plain transformers: what `embedding.py` runs on each shard."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from megatron_synth.config import ConfigError, DataError, RunError
from megatron_synth.engines.encoder_folder import Pooling

if TYPE_CHECKING:
    import torch

Pieces = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Frame:
    """What stands around each text, and which states make its vector.

    Attributes:
        lead: Ids before each text.
        tail: Ids behind it.
        left_out: How many of `lead` have no part in a mean.
        pooling: `mean`, `last` or `cls` (the first state).
        unit: Whether each piece's vector gets unit norm by itself.
    """

    lead: tuple[int, ...] = ()
    tail: tuple[int, ...] = ()
    left_out: int = 0
    pooling: Pooling = "mean"
    unit: bool = False

    def around(self, piece: Sequence[int]) -> list[int]:
        """The ids that the model reads."""
        return [*self.lead, *piece, *self.tail]

    @property
    def extra(self) -> int:
        """Ids that it adds."""
        return len(self.lead) + len(self.tail)


class Encoder(Protocol):
    """Pieces of documents, as ids, to vectors."""

    dimension: int
    room: int
    """Most ids of a piece."""
    layer: int | None
    """Layers below the states that are read; None: all, of an encoder."""
    key: list[Any]
    """All that a vector depends on besides its piece; JSON."""

    def encode(self, pieces: Pieces, done: Callable[[int], None]) -> NDArray[np.float32]:
        """float32 [pieces, dimension]; zeros for an empty piece. `done` counts pieces."""
        ...


class TorchEncoder:
    """A model run by transformers; `cut` leaves the layers below the one that is read.

    Args:
        folder: Hugging Face folder: config.json and weights.
        frame: What stands around a text, how states are pooled.
        max_tokens: Most ids of a text with its frame; the model's positions where that is less.
        batch_tokens: Padded tokens of one forward pass.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        DataError: No model there.
        ConfigError: CUDA where there is none.
    """

    def __init__(
        self, folder: Path, frame: Frame, *, max_tokens: int | None, batch_tokens: int, device: str
    ) -> None:
        import torch
        from transformers import AutoModel

        if device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device is cuda, but torch sees no GPU", fix="Use device: auto.")
        found = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = found if device == "auto" else device
        dtype = torch.float32 if self.device == "cpu" else torch.bfloat16
        try:
            with _quiet():
                model = AutoModel.from_pretrained(
                    folder,
                    local_files_only=True,
                    trust_remote_code=False,
                    use_safetensors=True,
                    dtype=dtype,
                )
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"cannot load the model: {error}", where=folder) from error
        settings = model.config
        self.layers = int(settings.num_hidden_layers)
        self.layer: int | None = None
        positions = int(getattr(settings, "max_position_embeddings", 0) or 1 << 30)
        self.room = min(max_tokens or positions, positions) - frame.extra
        if self.room < 1:
            raise ConfigError(
                f"the tokens around a text, {frame.extra}, leave no room for it",
                where=folder,
                fix="Raise max_tokens.",
            )
        self.dimension = int(settings.hidden_size)
        self.batch_tokens = batch_tokens
        self.frame = frame
        self.vocabulary = int(settings.vocab_size)
        self.key: list[Any] = []
        self._cut = False
        self._model = model.to(self.device).eval()

    def cut(self, layer: int) -> None:
        """Read the states after `layer` layers.

        Raises:
            ConfigError: The model has fewer layers.
        """
        if layer > self.layers:
            raise ConfigError(f"layer {layer} asked for, but the model has {self.layers}")
        self.layer = layer
        self._cut = _cut_at(self._model, layer)

    def encode(self, pieces: Pieces, done: Callable[[int], None]) -> NDArray[np.float32]:
        """See `Encoder.encode`."""
        import torch

        vectors = np.zeros((len(pieces), self.dimension), np.float32)
        finished = 0
        for batch, tokens, mask in self._padded(pieces):
            with torch.inference_mode():
                pooled = self._pool(self._states(tokens, mask), mask)
            if not torch.isfinite(pooled).all():
                raise RunError("the model gives activations that are not finite")
            vectors[batch] = pooled.cpu().numpy()
            finished += len(batch)
            done(finished)
        done(len(pieces))
        return vectors

    def encode_layers(self, pieces: Pieces) -> NDArray[np.float32]:
        """Pooled states after every layer of a model that is whole, [layers, pieces, dimension]."""
        import torch

        assert self.layer is None, "the layers above are gone"
        _without_last_norm(self._model)
        vectors = np.zeros((self.layers, len(pieces), self.dimension), np.float32)
        for batch, tokens, mask in self._padded(pieces):
            with torch.inference_mode():
                states = self._model(
                    input_ids=tokens, attention_mask=mask, output_hidden_states=True
                ).hidden_states
                for layer in range(self.layers):
                    pooled = self._pool(states[layer + 1], mask)
                    vectors[layer, batch] = pooled.cpu().numpy()
        return vectors

    def _padded(self, pieces: Pieces) -> Iterator[tuple[list[int], Any, Any]]:
        """Batches of like length: which pieces, ids and mask [batch, sequence]."""
        import torch

        extra = self.frame.extra
        for batch in batches([len(p) + extra if p else 0 for p in pieces], self.batch_tokens):
            rows = [self.frame.around(pieces[i]) for i in batch]
            longest = max(map(len, rows))
            tokens = torch.zeros(len(rows), longest, dtype=torch.long)
            mask = torch.zeros(len(rows), longest, dtype=torch.long)
            for i, row in enumerate(rows):
                tokens[i, : len(row)] = torch.tensor(row, dtype=torch.long)
                mask[i, : len(row)] = 1
            if int(tokens.max()) >= self.vocabulary:
                raise DataError(
                    f"token id {int(tokens.max())} is outside the model's vocabulary of "
                    f"{self.vocabulary}",
                    fix="Tokenize with the tokenizer that the model was trained with.",
                )
            yield batch, tokens.to(self.device), mask.to(self.device)

    def _states(self, tokens: "torch.Tensor", mask: "torch.Tensor") -> "torch.Tensor":
        """States that are read, [batch, sequence, dimension]."""
        all_layers = self.layer is not None and not self._cut
        more = {"output_hidden_states": True} if all_layers else {}
        if self._cut:
            more["use_cache"] = False
        answer = self._model(input_ids=tokens, attention_mask=mask, **more)
        result: torch.Tensor = (
            answer.hidden_states[self.layer] if all_layers else answer.last_hidden_state
        )
        return result

    def _pool(self, states: "torch.Tensor", mask: "torch.Tensor") -> "torch.Tensor":
        """Vectors of texts padded at their end, float32 [batch, dimension]."""
        import torch

        states = states.float()
        if self.frame.pooling == "mean":
            weight = mask.float()
            weight[:, : self.frame.left_out] = 0
            total = torch.einsum("bsd,bs->bd", states, weight)
            pooled = total / weight.sum(1, keepdim=True).clamp_min(1)
        else:
            last = mask.sum(1) - 1 if self.frame.pooling == "last" else torch.zeros_like(mask[:, 0])
            pooled = states[torch.arange(len(states), device=states.device), last]
        return torch.nn.functional.normalize(pooled, dim=1) if self.frame.unit else pooled


def activations_frame(prefix: int | None) -> Frame:
    """A language model's own activations: a separator first, left out of the mean."""
    frame = Frame()
    return frame if prefix is None else replace(frame, lead=(prefix,), left_out=1)


def batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices by falling length, each batch at most `batch_tokens` when padded (or one document).

    The longest come first, so that a shard too large for the memory fails at once.
    """
    order = sorted((i for i in range(len(lengths)) if lengths[i]), key=lambda i: (-lengths[i], i))
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@contextmanager
def _quiet() -> Iterator[None]:
    """Load without a progress bar, and without a warning about the output head left out."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _cut_at(model: Any, layer: int) -> bool:
    """Drop the layers above `layer` and the final norm, where the model has the usual shape.

    The decoders that this project trains and serves (Llama, Qwen3, OLMo2, OLMoE) keep a list
    `layers` and a `norm`; half the layers is half the time and memory. False: not that shape.
    """
    import torch

    layers, norm = getattr(model, "layers", None), getattr(model, "norm", None)
    if not isinstance(layers, torch.nn.ModuleList) or not isinstance(norm, torch.nn.Module):
        return False
    model.layers = layers[:layer]
    model.norm = torch.nn.Identity()
    return True


def _without_last_norm(model: Any) -> None:
    """The last layer's states as they are, as of every other layer."""
    import torch

    if isinstance(getattr(model, "norm", None), torch.nn.Module):
        model.norm = torch.nn.Identity()
