"""A vLLM logits processor that makes some token ids impossible, for every request.

Imported by vLLM inside its worker, by name. One masked assignment a step; the list of allowed
ids that vLLM takes with each request would cost O(vocabulary) a request instead.
"""

from typing import Any

from vllm.v1.sample.logits_processor import LogitsProcessor

CONFIG_KEY = "megatron_synth_banned_ids"
"""Where the ids stand in vLLM's `additional_config`."""


class BannedIds(LogitsProcessor):
    """Sets the logits of the banned ids to minus infinity before anything is sampled."""

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        import torch

        ids = vllm_config.additional_config.get(CONFIG_KEY, [])
        self._ids = torch.tensor(sorted(ids), dtype=torch.int64, device=device)

    def apply(self, logits: Any) -> Any:
        """Ban them in logits, float[requests, vocabulary], in place."""
        return logits.index_fill_(1, self._ids, float("-inf"))

    def is_argmax_invariant(self) -> bool:
        """False: a banned id may have been the likeliest one."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """The same ids are banned for all requests: there is no state."""
