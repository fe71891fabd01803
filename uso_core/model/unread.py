"""Tells what of a prompt a tokenizer does not read."""

from __future__ import annotations

import unicodedata

from transformers import PreTrainedTokenizerBase

from uso_core.events import Unread


def unread(tokenizer: PreTrainedTokenizerBase, length: int, prompt: str) -> Unread:
    """The words that are unknown to a tokenizer, and the end of the prompt beyond `length` tokens.

    What is not in the vocabulary, as other scripts and emoji, becomes one unknown token. Marks of punctuation are not
    reported.
    """
    encoded = tokenizer(prompt, max_length=length, truncation=True, return_offsets_mapping=True)
    places = encoded.offset_mapping
    words = []
    for number, (start, end) in zip(encoded.input_ids, places, strict=True):
        if number == tokenizer.unk_token_id and any(map(_is_meant, prompt[start:end])):
            words.append(_word_around(prompt, start, end))
    rest = prompt[max(end for _, end in places) :].strip() if len(places) == length else ""
    return Unread(tuple(dict.fromkeys(words)), rest)


def _is_meant(character: str) -> bool:
    """Whether a character may mean something: letters, digits and symbols do; punctuation and spaces do not."""
    return unicodedata.category(character)[0] in "LNS"


def _word_around(prompt: str, start: int, end: int) -> str:
    """The whole word that a part of it stands in, without punctuation around it; a symbol alone."""
    if any(map(str.isalnum, prompt[start:end])):
        while start and prompt[start - 1].isalnum():
            start -= 1
        while end < len(prompt) and prompt[end].isalnum():
            end += 1
    while not _is_meant(prompt[start]):
        start += 1
    while not _is_meant(prompt[end - 1]):
        end -= 1
    return prompt[start:end]
