"""Megatron-LM's `tools/preprocess_data.py`, by its own argument names, many times faster.

    python tools/preprocess_data.py --input corpus.jsonl --output-prefix corpus --workers 8 \
        --tokenizer-type HuggingFaceTokenizer --tokenizer-model path/to/tokenizer --append-eod

Writes PREFIX_KEY_document.bin and .idx for each of --json-keys, byte for byte what Megatron-LM
writes, but for texts that spell a special token (see --special-tokens). Beside them stand a .json
with counts and, with --provenance, a table of the documents' ids. The same command again after a
kill goes on where it stopped.
"""

import argparse
import sys
from pathlib import Path

from megatron_synth.config import DataError, MegatronSynthError, parse_config
from megatron_synth.packing import PackConfig, pack
from megatron_synth.packing.choosing import ENCODERS
from megatron_synth.runs import get_logger, log_to, shown_progress
from megatron_synth.tokens import Tokenizer

TOKENIZERS = {
    "HuggingFaceTokenizer": "HuggingFaceTokenizer",
    "SentencePieceTokenizer": "SentencePieceTokenizer",
    "GPTSentencePieceTokenizer": "SentencePieceTokenizer",
    "Llama2Tokenizer": "SentencePieceTokenizer",
    "TikTokenizer": "TiktokenTokenizer",
}
"""Megatron-LM's names, and ours."""

_log = get_logger("megatron_synth.preprocess_data")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--input", required=True, help="JSONL (plain, .gz, .zst) or Parquet: file, folder or glob")
    add("--output-prefix", required=True, type=Path, help="path without _KEY_document.bin")
    add("--json-keys", nargs="+", default=["text"], help="keys to pack, each into its own files")
    add("--tokenizer-type", default="HuggingFaceTokenizer", choices=TOKENIZERS)
    add("--tokenizer-model", required=True, help="folder, hub name, .model or .tiktoken file")
    add("--append-eod", action="store_true", help="end each document with EOS")
    add(
        "--prepend-bos",
        action="store_true",
        help="begin each document with BOS, as Llama2Tokenizer does anyway",
    )
    add("--workers", type=int, default=1, help="processes")
    ours = parser.add_argument_group("not in Megatron-LM")
    ours.add_argument("--encoder", default="auto", choices=ENCODERS)
    ours.add_argument(
        "--special-tokens",
        default="text",
        choices=("text", "reject", "keep"),
        help="what a special token's spelling inside a text becomes: the text that it is; the row "
        "is set aside; the control token, as Megatron-LM does",
    )
    ours.add_argument("--provenance", action="store_true", help="write .provenance.parquet")
    ours.add_argument("--quarantine-limit", type=float, default=0.01, help="share of bad rows")
    return parser.parse_args(arguments)


def preprocess(options: argparse.Namespace) -> None:
    """Pack as the command line says."""
    _log.info("tokenizer: %s %s", options.tokenizer_type, options.tokenizer_model)
    tokenizer = Tokenizer.load(options.tokenizer_model)
    found = type(tokenizer).__name__
    if found != TOKENIZERS[options.tokenizer_type]:
        raise DataError(
            f"--tokenizer-type is {options.tokenizer_type}, but this is for a {found}",
            where=options.tokenizer_model,
            fix="Give the type that fits, or another --tokenizer-model.",
        )
    settings = {
        "keys": options.json_keys,
        "sentences": True,
        "beginning_of_text": options.prepend_bos or options.tokenizer_type == "Llama2Tokenizer",
        "end_of_text": options.append_eod,
        "special_tokens": options.special_tokens,
        "provenance": options.provenance,
        "quarantine_limit": options.quarantine_limit,
    }
    config = parse_config(settings, PackConfig, where="preprocess_data.py")
    _log.info("input: %s; keys: %s; workers: %d", options.input, options.json_keys, options.workers)
    with shown_progress() as progress:
        packed = pack(
            options.input,
            tokenizer,
            options.output_prefix,
            progress,
            config,
            workers=options.workers,
            encoder=options.encoder,
        )
    for name, info in packed.infos.items():
        _log.info(
            "%s: %s documents, %s tokens, %s, %s special tokens spelled in texts (%s)",
            options.output_prefix.with_name(name),
            f"{info.documents:,}",
            f"{info.tokens:,}",
            info.dtype,
            f"{info.special_spellings:,}",
            options.special_tokens,
        )
    if packed.quarantined + packed.rejected:
        listed = f"{options.output_prefix}.quarantine.jsonl"
        _log.warning("%d rows are not packed; see %s", packed.quarantined + packed.rejected, listed)


def main() -> int:
    """Give the exit status: 0 done, 1 failed, 2 wrong input, 130 stopped."""
    log_to()
    try:
        preprocess(parse(sys.argv[1:]))
    except MegatronSynthError as error:
        print(f"preprocess_data.py: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("preprocess_data.py: stopped; the same command again goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
