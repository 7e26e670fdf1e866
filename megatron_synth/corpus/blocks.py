"""Documents in blocks of bounded size: what is hashed and tokenized together."""

from collections.abc import Iterable, Iterator

from megatron_synth.corpus.document import Document

_DOCUMENTS = 256
_CHARACTERS = 1 << 20


def document_blocks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Blocks of at most 256 documents; a document that makes one 1 MB of text or more ends it."""
    block: list[Document] = []
    characters = 0
    for document in documents:
        block.append(document)
        characters += len(document.text)
        if len(block) == _DOCUMENTS or characters >= _CHARACTERS:
            yield block
            block, characters = [], 0
    if block:
        yield block
