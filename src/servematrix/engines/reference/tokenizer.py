"""Text to tokens and back: the vocabulary is every word of the corpus, bytes stand for the rest.

A token is a word with the space before it (" capital"), a number, one punctuation mark, a newline
or a run of spaces. A text may be cut before any " word" without changing its tokens, which is what
scoring an ending after its context needs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

EOS = 0
MESSAGE_START = "<|im_start|>"
MESSAGE_END = "<|im_end|>"

# A run of spaces leaves its last one to the word that follows.
_PIECE = re.compile(
    r"<\|im_start\|>|<\|im_end\|>"
    r"| ?[A-Za-z]+(?:'[a-z]+)?| ?[0-9]+|\n| ?[^\sA-Za-z0-9]| +(?= \S)| +|\s"
)
_RESERVED = (b"", MESSAGE_START.encode(), MESSAGE_END.encode())
_FIRST_BYTE = len(_RESERVED)


class Tokenizer:
    """A fixed vocabulary; `decode(encode(text)) == text` for every str.

    Token 0 ends a sequence; no text encodes to it and it decodes to "". Tokens 1 and 2 open and
    close a chat message, the next 256 are the bytes, the rest are pieces, most frequent first.
    """

    eos: int = EOS

    def __init__(self, texts: Iterable[str]) -> None:
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(_PIECE.findall(text))
        known = {bytes([value]) for value in range(256)} | set(_RESERVED)
        pieces = sorted(
            (piece for piece in counts if piece.encode() not in known),
            key=lambda piece: (-counts[piece], piece),
        )
        self._bytes: list[bytes] = [
            *_RESERVED,
            *(bytes([value]) for value in range(256)),
            *(piece.encode() for piece in pieces),
        ]
        # Non-ASCII bytes are parts of characters, so only ASCII ones are pieces by themselves.
        self._ids: dict[str, int] = {
            token.decode(): index
            for index, token in enumerate(self._bytes)
            if token and token.isascii()
        }
        self._ids.update(
            (piece, index) for index, piece in enumerate(pieces, start=_FIRST_BYTE + 256)
        )
        self._longest = max(map(len, self._ids))
        self.vocabulary_size: int = len(self._bytes)

    def encode(self, text: str) -> list[int]:
        """Return the tokens of `text`, without a beginning or an end token."""
        ids = self._ids
        tokens: list[int] = []
        for piece in _PIECE.findall(text):
            token = ids.get(piece)
            if token is None:
                tokens.extend(self._spell(piece))
            else:
                tokens.append(token)
        return tokens

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`; bytes that form no character become U+FFFD.

        Raises IndexError for an id outside the vocabulary.
        """
        data = b"".join([self._bytes[index] for index in ids])
        try:
            return data.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            return data.decode("utf-8", "replace")

    def token_text(self, token: int) -> str:
        """Return the text of one token; a byte of a longer character reads U+FFFD."""
        return self._bytes[token].decode("utf-8", "replace")

    def _spell(self, piece: str) -> list[int]:
        """Cut an unknown piece into the longest known beginnings, bytes where there are none."""
        tokens: list[int] = []
        start = 0
        while start < len(piece):
            for end in range(min(len(piece), start + self._longest), start, -1):
                token = self._ids.get(piece[start:end])
                if token is not None:
                    tokens.append(token)
                    start = end
                    break
            else:
                character = piece[start].encode("utf-8", "surrogatepass")
                tokens.extend(_FIRST_BYTE + value for value in character)
                start += 1
        return tokens
