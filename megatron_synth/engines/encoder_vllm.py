"""An encoder run by vLLM's pooling task: continuous batching and its kernels, on CPUs and GPUs."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_synth.config import ConfigError, RunError
from megatron_synth.engines.encoder import Frame, Pieces
from megatron_synth.engines.model_folder import read_model_folder
from megatron_synth.engines.vllm_errors import explain
from megatron_synth.engines.vllm_settings import set_environment

_POOLING = {"mean": "MEAN", "last": "LAST", "cls": "CLS"}


class VllmEncoder:
    """The same vectors as `TorchEncoder`'s of the same folder and frame, to rounding.

    vLLM has no middle layer's states, and no mean over a part of the tokens. In float32 on a CPU,
    in the stored weights' type on a GPU.

    Raises:
        ConfigError: The encoder leaves its prompt out of the mean; vLLM cannot run it.
        RunError: vLLM did not start.
    """

    def __init__(self, folder: Path, frame: Frame, *, max_tokens: int, batch_tokens: int) -> None:
        if frame.left_out:
            raise ConfigError(
                "the encoder leaves its prompt out of the mean, which vLLM cannot",
                where=folder,
                fix="Set embedding.engine=transformers.",
            )
        model = read_model_folder(folder)
        context = min(max_tokens, model.context)
        self.room, self.frame = context - frame.extra, frame
        self.layer: int | None = None
        self.key: list[Any] = []
        self._folder = folder
        set_environment()
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        try:
            from vllm import EngineArgs, LLMEngine
            from vllm.config import PoolerConfig
            from vllm.platforms import current_platform

            on_cpu = current_platform.is_cpu()
            self.device = "cpu" if on_cpu else "cuda"
            arguments = EngineArgs(
                model=str(folder),
                runner="pooling",
                convert="embed",
                pooler_config=PoolerConfig(
                    seq_pooling_type=_POOLING[frame.pooling], use_activation=frame.unit
                ),
                skip_tokenizer_init=True,
                dtype="float32" if on_cpu else model.dtype,
                max_model_len=context,
                max_num_batched_tokens=max(batch_tokens, context),
                enable_chunked_prefill=False,  # a mean needs all of a text at once
                enable_prefix_caching=False,
                enforce_eager=on_cpu,
                trust_remote_code=False,
                disable_log_stats=True,
                use_tqdm_on_load=False,
                **({"kv_cache_memory_bytes": 1 << 28} if on_cpu else {}),
            )
            self._engine = LLMEngine.from_engine_args(arguments)
        except Exception as error:
            raise explain(error, folder, "starting") from error
        self.dimension = int(self._engine.model_config.get_hidden_size())

    def encode(self, pieces: Pieces, done: Callable[[int], None]) -> NDArray[np.float32]:
        """See `Encoder.encode`."""
        from vllm import PoolingParams
        from vllm.inputs import tokens_input

        vectors = np.zeros((len(pieces), self.dimension), np.float32)
        present = [i for i, piece in enumerate(pieces) if piece]
        finished = 0
        try:
            for i in present:
                prompt = tokens_input(self.frame.around(pieces[i]))
                self._engine.add_request(str(i), prompt, PoolingParams(task="embed"))
            while self._engine.has_unfinished_requests():
                for answer in self._engine.step():
                    if answer.finished:
                        vectors[int(answer.request_id)] = answer.outputs.data.float().numpy()
                        finished += 1
                done(finished)
        except Exception as error:
            raise explain(error, self._folder, "embedding") from error
        if not np.isfinite(vectors).all():
            raise RunError("the model gives activations that are not finite")
        done(len(pieces))
        return vectors
