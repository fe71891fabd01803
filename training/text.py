"""The two small text encoders and their tokenizers, in the file formats of the big ones.

T5 side: a Unigram tokenizer whose pieces are the whole words of the world; what is left of a word after its
longest known beginning is one unknown piece. Case and punctuation are folded by a SentencePiece character map, the one
kind of normaliser that transformers' own T5 tokenizer takes over from tokenizer.json.
CLIP side: byte-level BPE whose merges build each word of the world; other words become single bytes.
"""

from __future__ import annotations

import json
import struct
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    PreTrainedTokenizerBase,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from .world.prompts import vocabulary

TEXT_TOKENS = 32  # T5's length, padded, the padding attended
CLIP_TOKENS = 32
TEXT_WIDTH = 128
PAD, SHARPNESS = 0, 16.0
_NODES, _VALUES = 256, 512  # places in the double array of the character map
_START, _END = "<|startoftext|>", "<|endoftext|>"


def build_t5_tokenizer() -> PreTrainedTokenizerBase:
    """Whole-word Unigram, lower case, punctuation dropped."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -12.0)]
    pieces += [(f"▁{word}", -2.0) for word in vocabulary()]
    return T5TokenizerFast(
        vocab=pieces, extra_ids=0, _spm_precompiled_charsmap=_character_map(), model_max_length=TEXT_TOKENS,
        padding_side="right",
    )  # fmt: skip


def _character_map() -> bytes:
    """SentencePiece's precompiled map: ASCII capitals to small letters, other ASCII signs to spaces.

    Its layout: the size of a Darts double array in bytes, the array, the replacements as strings that end in zero.
    A unit of the array is an offset to the children (from bit 10), a flag that a value follows (bit 8) and a label (the
    low byte); keys are single bytes here, so the nodes lie at _NODES + byte and the values behind them.
    """
    replacements, units = b"", [0] * (_VALUES + 128)
    units[0] = _NODES << 10
    for byte in range(33, 127):
        sign = chr(byte)
        if sign.islower() or sign.isdigit():
            continue
        node, value = _NODES + byte, _VALUES + byte
        units[node] = ((node ^ value) << 10) | (1 << 8) | byte
        units[value] = len(replacements) | (1 << 31)
        replacements += (sign.lower() if sign.isupper() else " ").encode() + b"\0"
    return struct.pack("<I", 4 * len(units)) + struct.pack(f"<{len(units)}I", *units) + replacements


def build_clip_tokenizer() -> PreTrainedTokenizerBase:
    """CLIP's own tokenizer class over a small vocabulary: all bytes, and every word of the world as one token."""
    plain = CLIPTokenizer()
    words = vocabulary()
    tokenizer = Tokenizer(BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    tokenizer.normalizer = plain.backend_tokenizer.normalizer
    tokenizer.pre_tokenizer = plain.backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=20000, min_frequency=1, show_progress=False, end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([*words, *words], trainer)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(f"{folder}/bpe.json")
        bpe = json.loads(Path(folder, "bpe.json").read_text())["model"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    used = {text for text in bpe["vocab"] if len(text.removesuffix("</w>")) > 1}
    letters = alphabet + [letter + "</w>" for letter in alphabet]
    names = letters + sorted(used - set(letters)) + [_START, _END]  # the end has the highest number, as in CLIP
    return CLIPTokenizer(
        vocab={name: number for number, name in enumerate(names)},
        merges=[tuple(merge) for merge in bpe["merges"]],
        model_max_length=CLIP_TOKENS,
    )


def build_t5(vocabulary_size: int) -> T5EncoderModel:
    """T5 encoder, two layers."""
    model = T5EncoderModel(
        T5Config(
            vocab_size=vocabulary_size,
            d_model=TEXT_WIDTH,
            d_kv=32,
            d_ff=256,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=0,
            eos_token_id=1,
            relative_attention_max_distance=32,
        )  # fmt: skip
    )
    nn.init.normal_(model.shared.weight, std=0.5)
    return model


def build_clip(tokenizer: PreTrainedTokenizerBase) -> CLIPTextModel:
    """CLIP text model, two layers."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=CLIP_TOKENS,
            projection_dim=TEXT_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
    )


@dataclass(frozen=True)
class Words:
    """Prompts as the two encoders read them: int64 (B, TEXT_TOKENS) and (B, CLIP_TOKENS)."""

    t5: torch.Tensor
    clip: torch.Tensor


@lru_cache(maxsize=1)
def tokenizers() -> tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]:
    """T5's and CLIP's tokenizer."""
    return build_t5_tokenizer(), build_clip_tokenizer()


class WordLoss(nn.Module):
    """Keeps the text encoders from forgetting words that the pictures hardly reward: no part of the saved model.

    The encoders of the big model come trained from elsewhere; these learn from a loss in which the scene is most of
    the picture, and would come to tell scenes alone. Each of T5's states has to tell its own token, CLIP's pooled
    output all words of the prompt, against fixed random codes.
    """

    def __init__(self, words: int, clip_words: int) -> None:
        super().__init__()
        chance = torch.Generator().manual_seed(0)
        for name, size in (("codes", words), ("clip_codes", clip_words)):
            codes = F.normalize(torch.randn(size, TEXT_WIDTH, generator=chance), dim=1)
            self.register_buffer(name, codes, persistent=False)

    def forward(self, words: Words, states: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        """States (B, T, width) and pooled (B, width) -> a loss near 0 where every word can be told."""
        own, bag = words.t5.to(states.device), words.clip.to(states.device)
        scores = SHARPNESS * F.normalize(states.float(), dim=-1) @ self.codes.T  # (B, T, words)
        told = F.cross_entropy(scores.flatten(0, 1), own.flatten(), ignore_index=PAD)
        present = torch.zeros(len(bag), len(self.clip_codes), device=bag.device).scatter_(1, bag, 1.0)
        shares = present / present.sum(1, keepdim=True)
        likely = F.log_softmax(SHARPNESS * F.normalize(pooled.float(), dim=-1) @ self.clip_codes.T, dim=1)
        even = (shares * shares.clamp_min(1e-9).log()).sum(1)  # what the best answer reaches
        return told + (even - (shares * likely).sum(1)).mean()


def read_words(prompts: list[str]) -> Words:
    """Tokens padded and truncated as the pipeline does it."""

    def ids(tokenizer: PreTrainedTokenizerBase, length: int) -> torch.Tensor:
        encoded = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return encoded.input_ids

    t5, clip = tokenizers()
    return Words(ids(t5, TEXT_TOKENS), ids(clip, CLIP_TOKENS))
