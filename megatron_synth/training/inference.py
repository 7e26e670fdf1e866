"""What to do with a checkpoint: load it on one rank, score documents, hand it to Hugging Face."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_synth.config import ConfigError, DataError
from megatron_synth.models import ModelConfig, build_model, write_hugging_face
from megatron_synth.runtime import ParallelConfig, device, initialize
from megatron_synth.training.checkpoints import (
    CheckpointState,
    load_weights,
    read_state,
)
from megatron_synth.training.config import TrainConfig
from megatron_synth.training.saving import save_weights
from megatron_synth.training.starting import load_start, model_at


def load_for_inference(
    checkpoint: Path, *, dtype: torch.dtype = torch.float32, threads: int | None = None
) -> tuple[Any, ModelConfig]:
    """Load a checkpoint of any layout as a whole model in this process.

    Args:
        checkpoint: A folder `step_XXXXXXXX`.
        dtype: Of the loaded weights.
        threads: CPU threads; None leaves the process's number.

    Returns:
        The model, in evaluation mode, giving logits [B, S, padded vocabulary]; and its config.

    Raises:
        DataError: This is no checkpoint, or it is damaged.
    """
    state = read_state(checkpoint)
    initialize(ParallelConfig(), threads=threads)
    model = build_model(
        state.model,
        sequence_length=state.train.sequence_length,
        dtype=dtype,
        gather_logits=True,
    )
    load_weights(checkpoint, model)
    model.eval()
    return model, state.model


def export_hugging_face(
    checkpoint: Path, tokenizer_folder: Path, out: Path, *, max_positions: int | None = None
) -> None:
    """Write a checkpoint as a Hugging Face folder (METHODS 1: for transformers and vLLM).

    Args:
        checkpoint: A folder `step_XXXXXXXX`.
        tokenizer_folder: The tokenizer that the model was trained with.
        out: Folder to write.
        max_positions: Longest sequence to serve; None: the training's sequence length.

    Raises:
        ConfigError: The model has no Hugging Face form.
        DataError: Something is missing or damaged.
    """
    model, config = load_for_inference(checkpoint)
    write_hugging_face(
        model.state_dict(),
        config,
        tokenizer_folder,
        out,
        max_positions=max_positions or model.max_sequence_length,
    )


def import_hugging_face(folder: Path, out: Path) -> Path:
    """Write a Hugging Face model as a checkpoint of ours: weights alone, to start runs from.

    Args:
        folder: A Hugging Face folder.
        out: Folder for `step_00000000`.

    Returns:
        The checkpoint.

    Raises:
        ConfigError: A model of a kind that is not built here.
        DataError: Something is missing or damaged; `out` holds a checkpoint already.
        RunError: It could not be written.
    """
    final = out / "step_00000000"
    if final.exists():
        raise DataError("is there already", where=final, fix="Give another folder.")
    config = model_at(folder)
    initialize(ParallelConfig())
    model = build_model(config, sequence_length=2, gather_logits=True)
    load_start(folder, model, config)
    state = CheckpointState(
        step=0,
        samples=0,
        model=config,
        train=TrainConfig(steps=1),
        data_hash="",
        ranks=1,
        seconds=0.0,
        loss=0.0,
        validation={},
        account={},
        dtype="float32",
        init_from=str(folder),
    )
    save_weights(final, model, state)
    return final


def document_losses(
    model: Any,
    documents: Sequence[np.ndarray],
    *,
    eos_id: int,
    batch_tokens: int = 8192,
    max_tokens: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Loss of each document, alone in its window.

    The first token is predicted from EOS, as in training, where each document follows the EOS of
    the one before; the final EOS is predicted too.

    Args:
        model: From `load_for_inference`.
        documents: Token ids of each; a final EOS may be there or not, it is scored once.
        eos_id: The end-of-text id.
        batch_tokens: Tokens of one forward pass, padding included; bounds the memory (logits
            take batch_tokens * vocabulary * 4 bytes, several times).
        max_tokens: Longest input, EOS in front included; None: the length trained with.

    Returns:
        Summed negative log-likelihood in nats, float64[n], and predicted tokens, int64[n], in the
        order of `documents`.

    Raises:
        ConfigError: A document is longer than the limit.
        DataError: A document is empty, or has ids that the model does not know.
    """
    limit = max_tokens or model.max_sequence_length
    targets = [_with_eos(document, eos_id) for document in documents]
    for number, target in enumerate(targets):
        _check_document(number, target, limit, model.unpadded_vocab_size)
    nll = np.zeros(len(targets), dtype=np.float64)
    # Documents of like length share a pass; attention is causal, so padding behind is harmless.
    for batch in _batches([len(target) for target in targets], batch_tokens):
        longest = max(len(targets[i]) for i in batch)
        tokens = torch.full((len(batch), longest), eos_id, dtype=torch.long)
        labels = torch.full((len(batch), longest), eos_id, dtype=torch.long)
        mask = torch.zeros(len(batch), longest, dtype=torch.bool)
        for row, i in enumerate(batch):
            target = torch.from_numpy(targets[i])
            tokens[row, 1 : len(target)] = target[:-1]
            labels[row, : len(target)] = target
            mask[row, : len(target)] = True
        positions = torch.arange(longest).expand(len(batch), longest)
        with torch.no_grad():
            losses = model(
                input_ids=tokens.to(device()),
                position_ids=positions.to(device()),
                attention_mask=None,
                labels=labels.to(device()),
            )
        summed = losses.double().masked_fill(~mask.to(losses.device), 0.0).sum(dim=1)
        nll[batch] = summed.cpu().numpy()
    return nll, np.array([len(target) for target in targets], dtype=np.int64)


def _with_eos(document: np.ndarray, eos_id: int) -> np.ndarray:
    ids = np.asarray(document, dtype=np.int64)
    return ids if len(ids) and ids[-1] == eos_id else np.append(ids, eos_id)


def _check_document(number: int, target: np.ndarray, limit: int, vocab_size: int) -> None:
    if len(target) < 2:
        raise DataError(
            "an empty document has no loss", where=f"document {number}", fix="Leave it out."
        )
    if len(target) > limit:
        raise ConfigError(
            f"{len(target)} tokens with EOS, the limit is {limit}",
            where=f"document {number}",
            fix="Leave out or cut longer documents, or raise max_tokens.",
        )
    if target.min() < 0 or target.max() >= vocab_size:
        raise DataError(
            f"token ids from {target.min()} to {target.max()}, the model knows 0 to "
            f"{vocab_size - 1}",
            where=f"document {number}",
            fix="Use the tokenizer that the model was trained with.",
        )


def _batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indices in batches of at most `batch_tokens` padded tokens, at least one document each."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    for i in order:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= batch_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
