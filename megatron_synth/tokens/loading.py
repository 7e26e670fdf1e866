"""Which kind of tokenizer stands behind a folder, a file or a name."""

from pathlib import Path

from megatron_synth.config import DataError
from megatron_synth.tokens.hub import fetch_tokenizer
from megatron_synth.tokens.tokenizer import Tokenizer

_FIX = (
    "Give the folder of a Hugging Face fast tokenizer, such as train_tokenizer writes, a "
    "SentencePiece *.model file, or a *.tiktoken file."
)


def load_tokenizer(folder_or_file_or_name: str | Path) -> Tokenizer:
    """See `Tokenizer.load`."""
    # Each kind imports its library, so only the one that is asked for is imported.
    from megatron_synth.tokens import tiktoken_encodings

    path = Path(folder_or_file_or_name)
    name = str(folder_or_file_or_name)
    if not path.exists() and name in tiktoken_encodings.ENCODINGS:
        from megatron_synth.tokens.tiktoken_bpe import TiktokenTokenizer

        return TiktokenTokenizer.from_name(name)
    if not path.exists() and path.suffix in (".model", ".tiktoken", ".json"):
        raise DataError("no such file", where=path, fix=_FIX)
    if path.is_file():
        return _from_file(path)
    if not path.is_dir():
        path = fetch_tokenizer(name)
    return _from_folder(path)


def _from_file(path: Path) -> Tokenizer:
    if path.suffix == ".model":
        from megatron_synth.tokens.sentence_piece import SentencePieceTokenizer

        return SentencePieceTokenizer(path)
    if path.suffix == ".tiktoken":
        from megatron_synth.tokens.tiktoken_bpe import TiktokenTokenizer

        return TiktokenTokenizer.from_file(path)
    if path.name == "tokenizer.json":
        return _from_folder(path.parent)
    raise DataError("no tokenizer file that is known", where=path, fix=_FIX)


def _from_folder(folder: Path) -> Tokenizer:
    if (folder / "tokenizer.json").is_file():
        from megatron_synth.tokens.hugging_face import HuggingFaceTokenizer

        return HuggingFaceTokenizer.from_folder(folder)
    if (folder / "tokenizer.model").is_file():
        return _from_file(folder / "tokenizer.model")
    ranks = sorted(folder.glob("*.tiktoken"))
    if len(ranks) > 1:
        names = ", ".join(path.name for path in ranks)
        raise DataError(f"several rank files there: {names}", where=folder, fix="Name one.")
    if ranks:
        return _from_file(ranks[0])
    raise DataError(
        "no tokenizer.json there, nor tokenizer.model, nor *.tiktoken", where=folder, fix=_FIX
    )
