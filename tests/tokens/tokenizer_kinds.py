"""Tokenizers of every kind, tiny, made on the spot."""

import base64
import io
import json
from pathlib import Path

import tokenizers
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

TRAINING = [
    "The quick brown fox jumps over the lazy dog, again and again; it's 1234 times.\n" * 3,
    "A text that quotes <|endoftext|> and </s> and <ctl> many times: " + "<|endoftext|>" * 50,
    "def read(path: str) -> bytes:\n    '''Read a file.'''\n    return open(path).read()\n",
    "naïve café 漢字 👩\u200d👧 שלום 　wide space, e\u0301 and é \r\n\t tabs",
] * 8

UNICODE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60)
ASCII = st.text(st.sampled_from("aAb xX'stre1234  \n\r\t.<|>/_"), max_size=60)
TEXT = UNICODE | ASCII

PLAIN = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}


def texts_with(spellings) -> st.SearchStrategy[str]:
    """Arbitrary text with spellings (and broken ones) at arbitrary places."""
    spelled = st.sampled_from(sorted(spellings))
    broken = st.builds(lambda s, n: s[n % len(s) :], spelled, st.integers(0, 20))
    parts = st.lists(TEXT | spelled | spelled | broken | spelled.map(lambda s: s + s), max_size=7)
    return parts.map("".join)


def save_hugging_face(folder: Path, specials, others=(), eos="<|endoftext|>") -> Path:
    """Byte-level BPE; `specials` and `others` are AddedTokens, special and not."""
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    model.train_from_iterator(TRAINING, trainer)
    model.add_special_tokens(list(specials))
    model.add_tokens(list(others))
    folder.mkdir(parents=True, exist_ok=True)
    model.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
    return folder


def hugging_face_kinds(root: Path) -> dict[str, Path]:
    def special(content, **flags):
        return AddedToken(content, special=True, **{**PLAIN, **flags})

    end = special("<|endoftext|>")
    return {
        "separators": save_hugging_face(root / "separators", [end, special("<|separator|>")]),
        "reserved": save_hugging_face(
            root / "reserved", [end, *(special(f"<|reserved_{i}|>") for i in range(256))]
        ),
        "flags": save_hugging_face(
            root / "flags",
            [
                end,
                special("<left>", lstrip=True),
                special("<right>", rstrip=True),
                special("<both>", lstrip=True, rstrip=True),
                special("<norm>", normalized=True),
                special("WORD", single_word=True),
            ],
        ),
        "added": save_hugging_face(
            root / "added",
            [end, special("<|a|>"), special("<|a|>b")],
            [AddedToken("<tool>", **PLAIN), AddedToken("    ", **PLAIN)],
        ),
    }


def save_sentence_piece(path: Path, kind: str = "bpe", **options) -> Path:
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TRAINING),
        model_writer=written,
        model_type=kind,
        vocab_size=400,
        hard_vocab_limit=False,
        control_symbols=["<|separator|>", "<ctl>"],
        minloglevel=2,
        **options,
    )
    path.write_bytes(written.getvalue())
    return path


BYTE_FALLBACK = {
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
}


def save_tiktoken(path: Path, pattern: str = "cl100k_base", unreachable=False, **settings) -> Path:
    """Ranks: the bytes, then pairs of earlier ranks; perhaps one that is no such pair."""
    words = ["th", "the", "in", "er", "an", "and", " t", " th", " the", "  ", "\n\n", "12", "123"]
    words += ["<|", "en", "end", "of", "<|en", "te", "xt", "é", "ag", "aga", "again", " a", " ag"]
    words += ["unreachable"] if unreachable else []
    ranks = [bytes([b]) for b in range(256)] + [word.encode() for word in words]
    lines = (f"{base64.b64encode(token).decode()} {i}\n" for i, token in enumerate(ranks))
    path.write_text("".join(lines))
    specials = {"<|endoftext|>": 300, "<|separator|>": 301, "<|x|>": 305}
    told = {"pattern": pattern, "special_tokens": specials, **settings}
    path.with_suffix(".json").write_text(json.dumps(told))
    return path
