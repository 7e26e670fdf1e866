"""Count in the ids what packing counted in the texts."""

from dataclasses import dataclass

from megatron_synth.packing.info import CorpusInfo
from megatron_synth.packing.reader import IndexedReader
from megatron_synth.tokens import Tokenizer


@dataclass(frozen=True)
class TextCounts:
    """Of the texts of some documents; see `CorpusInfo`."""

    text_bytes: int
    special_spellings: int


def count_texts(
    reader: IndexedReader, span: tuple[int, int], tokenizer: Tokenizer, info: CorpusInfo
) -> TextCounts:
    """Decode documents `span[0]` to `span[1]` - 1, without BOS and EOS, and count.

    Right where decoding gives back what was encoded, as byte-level BPE without normalisation
    does; the caller compares the sums with the whole's.
    """
    size = spellings = 0
    for number in range(*span):
        ids = reader.document(number).tolist()
        if info.bos_id is not None and ids[:1] == [info.bos_id]:
            del ids[0]
        if ids[-1:] == [info.eos_id]:
            del ids[-1]
        text = tokenizer.decode(ids, keep_special=True)
        size += len(text.encode("utf-8", "surrogatepass"))
        spellings += tokenizer.count_special_spellings(text)
    return TextCounts(size, spellings)
