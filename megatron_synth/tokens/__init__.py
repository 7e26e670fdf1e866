"""Tokenizers: text in, token ids out, and never a control token that the text itself spelled.

In: a folder in Hugging Face form (`tokenizer.json`, `tokenizer_config.json`), a SentencePiece
`*.model` file, a `*.tiktoken` rank file, the name of a tiktoken encoding, or a hub name.
Out: a `Tokenizer` that encodes, decodes, and has a fingerprint which goes into every product
that holds ids; a `FastEncoder` (gigatoken) where it is proven to give the same ids; or a newly
trained byte-level BPE folder that `transformers` and vLLM load.
Cost: 2 to 5 MB/s a core to encode, 80 to 300 with gigatoken, 5 MB/s on two cores to train;
imports `tokenizers` only, the packages of the other kinds when one is loaded.
"""

from megatron_synth.tokens.fast import FastEncoder, open_fast, prove_fast
from megatron_synth.tokens.special import SpecialPolicy
from megatron_synth.tokens.tokenizer import SEPARATOR, Tokenizer
from megatron_synth.tokens.train import END_OF_TEXT, TokenizerConfig, train_tokenizer

__all__ = [
    "END_OF_TEXT",
    "FastEncoder",
    "SEPARATOR",
    "SpecialPolicy",
    "Tokenizer",
    "TokenizerConfig",
    "open_fast",
    "prove_fast",
    "train_tokenizer",
]
