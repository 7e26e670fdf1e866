"""Forward and backward over one global batch, and the losses that come out of it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.utils import get_batch_on_this_cp_rank

from megatron_synth.config import ConfigError
from megatron_synth.models.chunks import chunks_of
from megatron_synth.runtime import device
from megatron_synth.training.batches import Batch

_BY_TOKEN = ("tokens", "position_ids", "labels", "loss_mask")


@dataclass(frozen=True)
class BatchLoss:
    """Losses of one global batch, equal on all ranks.

    Attributes:
        nll: Summed token losses of each sample [global batch], float64, nats.
        tokens: Unmasked tokens of each sample [global batch].
        dataset_id: Which dataset each sample is from [global batch].
        stop: Whether some rank asked to stop (a signal).
    """

    nll: torch.Tensor
    tokens: torch.Tensor
    dataset_id: torch.Tensor
    stop: bool

    @property
    def mean(self) -> float:
        """Mean loss of an unmasked token; NaN where all are masked."""
        return float(self.nll.sum() / self.tokens.sum())

    def by_dataset(self) -> dict[int, tuple[float, int]]:
        """Summed loss and unmasked tokens of each dataset that has any."""
        result = {}
        for number in sorted(set(self.dataset_id.tolist())):
            mine = self.dataset_id == number
            tokens = int(self.tokens[mine].sum())
            if tokens:
                result[number] = (float(self.nll[mine].sum()), tokens)
        return result


def run_batch(
    model: torch.nn.Module,
    batches: Sequence[Batch],
    *,
    global_batch_size: int,
    sequence_length: int,
    train: bool,
    stop: bool = False,
) -> BatchLoss:
    """Run the micro-batches of this rank through Megatron-Core's pipeline schedule.

    With `train`, gradients are left in the model, already summed over ranks and divided by the
    unmasked tokens of the whole global batch.
    """
    micro_batch_size = batches[0]["tokens"].shape[0]
    if "cu_seqlens" in batches[0]:  # documents kept apart go in as one text: see `_forward`
        sequence_length, micro_batch_size = sequence_length * micro_batch_size, 1
    parts = chunks_of(model)
    with _router_losses_by_unmasked_token(model, batches, train):
        results: list[dict[str, torch.Tensor]] = get_forward_backward_func()(
            forward_step_func=_forward,
            data_iterator=[iter(batches) for _ in parts] if len(parts) > 1 else iter(batches),
            model=parts if len(parts) > 1 else model,
            num_microbatches=len(batches),
            seq_length=sequence_length,
            micro_batch_size=micro_batch_size,
            forward_only=not train,
        )
    return _gather(results, global_batch_size, stop)


@contextmanager
def _router_losses_by_unmasked_token(
    model: torch.nn.Module, batches: Sequence[Batch], train: bool
) -> Iterator[None]:
    """Give an MoE's router losses their coefficients whatever share of the tokens is masked.

    Megatron-Core 0.16 multiplies them by all positions of a micro-batch, then divides all
    gradients by the unmasked tokens of the global batch. The coefficients are therefore multiplied
    by that batch's unmasked tokens over its positions, one figure for all ranks.
    """
    config: Any = model.config
    if not train or config.num_moe_experts is None:
        yield
        return
    masks = [batch["loss_mask"] for batch in batches]
    unmasked = sum(float(mask.double().sum()) for mask in masks)
    positions = sum(mask.numel() for mask in masks)
    counts = torch.tensor([unmasked, positions], dtype=torch.float64, device=device())
    dist.all_reduce(counts, group=parallel_state.get_data_parallel_group())
    share = float(counts[0] / counts[1])
    before = config.moe_aux_loss_coeff, config.moe_z_loss_coeff
    config.moe_aux_loss_coeff = before[0] * share
    config.moe_z_loss_coeff = None if before[1] is None else before[1] * share
    try:
        yield
    finally:
        config.moe_aux_loss_coeff, config.moe_z_loss_coeff = before


def _forward(iterator: Any, model: torch.nn.Module) -> tuple[torch.Tensor, Any]:
    """One micro-batch; where documents do not see each other, its windows form one packed text."""
    here = next(iterator)
    packed = _packing(here["cu_seqlens"]) if "cu_seqlens" in here else None
    batch = {
        name: value.to(device(), non_blocking=True)
        for name, value in here.items()
        if name != "cu_seqlens"
    }
    if parallel_state.get_context_parallel_world_size() > 1:
        batch |= _own_pieces({name: batch[name] for name in _BY_TOKEN}, packed)
    texts = {name: batch[name] for name in ("tokens", "position_ids", "labels")}
    if packed is not None:
        texts = {name: text.reshape(1, -1) for name, text in texts.items()}
    output = model(
        input_ids=texts["tokens"],
        position_ids=texts["position_ids"],
        attention_mask=None,
        labels=texts["labels"],
        packed_seq_params=packed,
    )
    return output, partial(_loss, batch)


def _own_pieces(batch: Batch, packed: PackedSeqParams | None) -> Batch:
    """This rank's two pieces of every window, [B, S / context_parallel]."""
    if packed is not None:
        raise ConfigError(
            "windows that keep documents apart are not split over ranks here",
            where="training.context_parallel",
            fix="Set it to 1, or plan the blend with attention: cross.",
        )
    pieces: Batch = get_batch_on_this_cp_rank(batch)
    return pieces


def _packing(cu_seqlens: torch.Tensor) -> PackedSeqParams:
    """Where the documents of all windows begin, windows one after another.

    Args:
        cu_seqlens: int32[B, S + 1], as samples carry it: begins, then S to the end.
    """
    windows, size = cu_seqlens.shape[0], cu_seqlens.shape[1] - 1
    begins = (cu_seqlens + size * torch.arange(windows)[:, None])[cu_seqlens < size]
    borders = torch.cat([begins, torch.tensor([windows * size])]).to(torch.int32)
    longest = int(torch.diff(borders).max())
    borders = borders.to(device(), non_blocking=True)
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=borders,
        cu_seqlens_kv=borders,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
    )


def _loss(
    batch: Batch, token_losses: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    mask = batch["loss_mask"]
    nll = (token_losses.view(mask.shape) * mask).sum(dim=1)
    tokens = mask.sum(dim=1)
    kept = {
        "nll": nll.detach(),
        "tokens": tokens,
        "dataset_id": batch["dataset_id"],
        "place": batch["place"],
    }
    return nll.sum(), tokens.sum().to(torch.int), kept


def _gather(
    results: Sequence[dict[str, torch.Tensor]], global_batch_size: int, stop: bool
) -> BatchLoss:
    """Put each sample's figures in its place of the global batch, on every rank."""
    table = torch.zeros(4, global_batch_size + 1, dtype=torch.float64, device=device())
    counts_here = (
        parallel_state.is_pipeline_last_stage()
        and parallel_state.get_tensor_model_parallel_rank() == 0
    )
    if counts_here:
        names = ["nll", "tokens"]  # of this rank's part of the windows
        if parallel_state.get_context_parallel_rank() == 0:
            names.append("dataset_id")
        for result in results:
            for row, name in enumerate(names):
                table[row, result["place"]] = result[name].double()
    table[3, -1] = float(stop)
    if dist.get_world_size() > 1:
        dist.all_reduce(table)
    table = table.cpu()
    return BatchLoss(
        nll=table[0, :-1],
        tokens=table[1, :-1],
        dataset_id=table[2, :-1].long(),
        stop=bool(table[3, -1] > 0),
    )
