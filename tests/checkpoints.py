"""Small checkpoints with tokenizers of the kinds that open models have, made on the spot."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

TEXTS = [
    f"{subject} {verb} the {thing} {when}"
    for subject in ("we", "they", "nobody", "my neighbour")
    for verb in ("loved", "hated", "bought", "returned")
    for thing in ("coffee", "old table", "weather report")
    for when in ("today", "last Sunday, again", "é voilà 好")
]
WORDPIECE = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]",
             "sep_token": "[SEP]", "mask_token": "[MASK]"}  # fmt: skip
SENTENCE = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>",
            "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}  # fmt: skip


def wordpiece() -> tuple[Tokenizer, dict[str, str]]:
    """As BERT's: lower case, and marks at both ends."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    # As in BERT's vocabulary, the marks are not among the first four.
    special = ["[unused0]", "[unused1]", *WORDPIECE.values()]
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    ids = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )
    return tokenizer, WORDPIECE


def unigram() -> tuple[Tokenizer, dict[str, str]]:
    """As XLM-R's: pieces of sentences, and marks at both ends."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("<s>", "</s>")],
    )  # fmt: skip
    return tokenizer, SENTENCE


def byte_pairs(begin: bool) -> tuple[Tokenizer, dict[str, str]]:
    """As Llama 3's, with a mark at the beginning, or as Qwen's, with none at all."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|begin|>", "<|end|>"], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    tokenizer.train_from_iterator(TEXTS, trainer)
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
        )
        return tokenizer, {"bos_token": "<|begin|>", "eos_token": "<|end|>"}
    return tokenizer, {"eos_token": "<|end|>", "pad_token": "<|end|>"}


TOKENIZERS = {
    "wordpiece": wordpiece, "unigram": unigram, "llama": lambda: byte_pairs(True),
    "qwen": lambda: byte_pairs(False),
}  # fmt: skip


def save_tokenizer(folder: Path, kind: str) -> Tokenizer:
    """Write a tokenizer as a checkpoint has it, cutting and padding as some are published."""
    tokenizer, roles = TOKENIZERS[kind]()
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    content = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 8, **roles}
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    return tokenizer
