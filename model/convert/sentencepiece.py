"""A SentencePiece BPE file (tokenizer.model) as a fast tokenizer, without the sentencepiece package.

The file is a protocol buffer; the few fields that are read carry their numbers in sentencepiece_model.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import BPE

from prismcap.configs.errors import ConfigError

SPACE = "▁"
# ModelProto.SentencePiece.Type and TrainerSpec.ModelType
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
UNIGRAM, BPE_MODEL = 1, 2
# wire types of protocol buffers
VARINT, FIXED_64, LENGTH, FIXED_32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Piece:
    text: str
    score: float = 0.0
    kind: int = NORMAL


@dataclass(frozen=True)
class SentencePieceModel:
    """pieces: by id. add_dummy_prefix: a text is given a space in front."""

    pieces: tuple[Piece, ...]
    add_dummy_prefix: bool = True


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Raises ConfigError when the file is no BPE model of SentencePiece."""
    pieces: list[Piece] = []
    model_type, add_dummy_prefix = UNIGRAM, True
    try:
        for number, value in _fields(path.read_bytes()):
            if number == 1 and isinstance(value, bytes):
                pieces.append(_piece(value))
            elif number == 2 and isinstance(value, bytes):  # trainer_spec
                model_type = int(dict(_fields(value)).get(3, UNIGRAM))
            elif number == 3 and isinstance(value, bytes):  # normalizer_spec
                add_dummy_prefix = bool(dict(_fields(value)).get(3, True))
    except (ValueError, IndexError, struct.error) as error:
        raise ConfigError(f"{path}: not a whole SentencePiece model: {error}") from error
    if model_type != BPE_MODEL or not pieces:
        raise ConfigError(f"{path}: a SentencePiece model of type {model_type}, expected BPE ({BPE_MODEL})")
    return SentencePieceModel(tuple(pieces), add_dummy_prefix)


def fast_tokenizer(model: SentencePieceModel, named: Mapping[int, AddedToken]) -> Tokenizer:
    """The same ids for the same text. `named` gives tokens of their own to ids, in place of their pieces.

    Normalises as InternLM2's own fast tokenizer does: spaces become ▁, and nothing else changes.
    Raises ConfigError when an id of `named` cannot be had.
    """
    texts = [named[i].content if i in named else piece.text for i, piece in enumerate(model.pieces)]
    vocabulary = {text: i for i, text in enumerate(texts)}
    unknown = next((texts[i] for i, piece in enumerate(model.pieces) if piece.kind == UNKNOWN), None)
    tokenizer = Tokenizer(
        BPE(vocabulary, _merges(model, named), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    steps: list[normalizers.Normalizer] = [normalizers.Replace(" ", SPACE)]
    parts: list[decoders.Decoder] = [
        decoders.Replace(SPACE, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    if model.add_dummy_prefix:
        steps.insert(0, normalizers.Prepend(SPACE))
        parts.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence(parts)
    added = {
        i: AddedToken(piece.text, normalized=False, special=piece.kind == CONTROL)
        for i, piece in enumerate(model.pieces)
        if piece.kind in (CONTROL, USER_DEFINED)
    } | dict(named)
    for i, token in sorted(added.items()):
        tokenizer.add_tokens([token])
        if tokenizer.token_to_id(token.content) != i:
            raise ConfigError(
                f"token {token.content!r} should have id {i}, but it can only be "
                f"{tokenizer.token_to_id(token.content)}: the vocabulary has {len(texts)} pieces"
            )
    return tokenizer


def _merges(model: SentencePieceModel, named: Mapping[int, AddedToken]) -> list[tuple[str, str]]:
    """Every way to make a piece of two, the best piece first: SentencePiece joins in the order of scores."""
    ids = {piece.text: i for i, piece in enumerate(model.pieces) if piece.kind == NORMAL and i not in named}
    found: list[tuple[float, int, int, str, str]] = []
    for text, i in ids.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in ids and right in ids:
                found.append((-model.pieces[i].score, ids[left], ids[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _piece(data: bytes) -> Piece:
    values = dict(_fields(data))
    text = values.get(1)
    if not isinstance(text, bytes):
        raise ValueError("a piece without text")
    return Piece(text.decode(), float(values.get(2, 0.0)), int(values.get(3, NORMAL)))


def _fields(data: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """(number, value) of a message, in order. Raises ValueError, IndexError where it is damaged."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            whole, at = _varint(data, at)
            yield number, whole
            continue
        if wire == LENGTH:
            size, at = _varint(data, at)
        elif wire in (FIXED_32, FIXED_64):
            size = 4 if wire == FIXED_32 else 8
        else:
            raise ValueError(f"unknown wire type {wire} at byte {at}")
        value = data[at : at + size]
        if len(value) < size:
            raise ValueError(f"it ends within a field, at byte {at}")
        at += size
        yield number, struct.unpack("<f", value)[0] if wire == FIXED_32 else value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if byte < 0x80:
            return value, at
