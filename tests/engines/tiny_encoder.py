"""A small BERT in sentence-transformers' form, its tokenizer from a list of words."""

import json
from pathlib import Path

import tokenizers
import torch
from tokenizers import models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

WORDS = (
    *("the", "a", "cat", "dog", "tree", "house", "river", "runs", "sleeps", "over", "under"),
    *("[", "]", "sep", "near", "far"),
)
CLS, SEP = 1, 2


def save_encoder(
    folder: Path,
    *,
    pooling: dict[str, object] | None = None,
    words: int = 16,
    hidden: int = 32,
    normalize: bool = True,
) -> Path:
    """Save it; `words` is its max_seq_length."""
    specials = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    vocabulary = {word: number for number, word in enumerate([*specials, *WORDS])}
    model = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    model.normalizer = normalizers.BertNormalizer(lowercase=True)
    model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    model.add_special_tokens(specials)
    model.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    model.enable_truncation(8)  # as saved folders often have it; it must not count
    folder.mkdir(parents=True)
    model.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    BertModel(config).eval().save_pretrained(folder)
    kinds = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling")]
    kinds += [("2", "2_Normalize", "Normalize")] if normalize else []
    modules = [
        {"idx": i, "name": name, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (name, path, kind) in enumerate(kinds)
    ]
    put(folder / "modules.json", modules)
    put(folder / "sentence_bert_config.json", {"max_seq_length": words})
    put(folder / "1_Pooling" / "config.json", pooling or {"pooling_mode_mean_tokens": True})
    return folder


def put(path: Path, content: object) -> None:
    """Write JSON, its folder too."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
