"""Documents to Megatron's indexed datasets.

In: a document file and a tokenizer. Out: `PREFIX_text_document.bin` and `.idx`, which stock
Megatron-Core reads; `.json` (`CorpusInfo`: counts, tokenizer fingerprint, content hash), written
last; `.provenance.parquet`: id, source and method of document i. Document i of the index is
document i of the input: one sequence of ids that ends in EOS, one for each of its parts where it
has them, or none for an empty text.
Cost: over 100 MB/s on two cores with gigatoken, 5 MB/s a core with `tokenizers`; memory is
bounded by a block of text a process, plus 4 bytes a document of one part.
"""

from megatron_synth.packing.assembly import Packed
from megatron_synth.packing.config import PackConfig
from megatron_synth.packing.info import CorpusInfo, paths_of, read_corpus_info
from megatron_synth.packing.packer import pack

__all__ = ["CorpusInfo", "PackConfig", "Packed", "pack", "paths_of", "read_corpus_info"]
