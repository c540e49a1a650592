"""tokenizer.model read without the sentencepiece package, against its own algorithm written out."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest
from internlm2_files import BYTE, NORMAL, UNUSED, USER_DEFINED, Entry, sentencepiece_file, vocabulary
from tokenizers import AddedToken
from transformers.utils.import_utils import is_protobuf_available

from prismcap.configs.errors import ConfigError
from prismcap.model.convert.sentencepiece import Piece, SentencePieceModel, fast_tokenizer, read_sentencepiece


def reference_ids(text: str, entries: list[Entry], dummy_prefix: bool) -> list[int]:
    """SentencePiece's BPE: join the two neighbours whose piece scores highest, the leftmost first, until none
    are left; what is no piece is written in bytes."""
    ids = {text: i for i, (text, _, _) in enumerate(entries)}
    scores = {text: score for text, score, kind in entries if kind == NORMAL}
    symbols = [*(("▁" if dummy_prefix else "") + text.replace(" ", "▁"))]
    while True:
        joined = [(scores[a + b], -i) for i, (a, b) in enumerate(pairwise(symbols)) if a + b in scores]
        if not joined:
            break
        i = -max(joined)[1]
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
    found: list[int] = []
    for symbol in symbols:
        found += [ids[symbol]] if symbol in scores else [ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]
    return found


@pytest.mark.parametrize("dummy_prefix", [True, False])
def test_ids_are_those_of_the_algorithm(tmp_path: Path, dummy_prefix: bool) -> None:
    entries = vocabulary()
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_file(entries, dummy_prefix))
    model = read_sentencepiece(tmp_path / "tokenizer.model")
    assert [(piece.text, piece.score, piece.kind) for piece in model.pieces] == entries
    assert model.add_dummy_prefix == dummy_prefix
    tokenizer = fast_tokenizer(model, {})
    chance = random.Random(0)
    texts = ["the cats", " a", "", "there  cat\n", "Ünused 猫", *UNUSED]
    texts += ["".join(chance.choices("theracs 12.", k=30)) for _ in range(200)]
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == (reference_ids(text, entries, dummy_prefix) if text else []), text
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_names_take_the_place_of_pieces(tmp_path: Path) -> None:
    entries = [*vocabulary(), ("<seen>", 0.0, USER_DEFINED)]
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_file(entries))
    model = read_sentencepiece(tmp_path / "tokenizer.model")
    first = len(vocabulary()) - len(UNUSED)
    mark = AddedToken("<|mark|>", normalized=False, special=True)
    tokenizer = fast_tokenizer(model, {first: mark})
    assert tokenizer.get_vocab_size() == len(entries)
    assert tokenizer.token_to_id(UNUSED[0]) is None
    ids = tokenizer.encode("a<|mark|>a<seen>", add_special_tokens=False).ids
    assert first in ids and len(entries) - 1 in ids
    # an id past the last piece can only be the next one
    assert fast_tokenizer(model, {len(entries): mark}).token_to_id("<|mark|>") == len(entries)
    with pytest.raises(ConfigError, match=rf"'<\|mark\|>' should have id {len(entries) + 5}"):
        fast_tokenizer(model, {len(entries) + 5: mark})


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    whole = sentencepiece_file(vocabulary())
    for content in (whole[:-2], whole[:-3], b"\x0b" + whole, b"", b"PK\x03\x04 a zip file"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="SentencePiece model"):
            read_sentencepiece(path)
    path.write_bytes(sentencepiece_file(vocabulary(), model_type=1))
    with pytest.raises(ConfigError, match="expected BPE"):
        read_sentencepiece(path)


@pytest.mark.skipif(not is_protobuf_available(), reason="protobuf is not installed")
def test_the_file_is_what_protobuf_reads_and_writes(tmp_path: Path) -> None:
    from transformers.utils import sentencepiece_model_pb2_new as published

    entries = vocabulary()
    proto = published.ModelProto()
    proto.ParseFromString(sentencepiece_file(entries, dummy_prefix=False))
    assert [(piece.piece, piece.score, piece.type) for piece in proto.pieces] == entries
    assert not proto.normalizer_spec.add_dummy_prefix and proto.trainer_spec.model_type == 2

    # written by protobuf: other fields, negative numbers, defaults that are left out
    proto = published.ModelProto()
    proto.trainer_spec.model_type = 2
    proto.trainer_spec.pad_id = -1
    proto.trainer_spec.character_coverage = 0.9995
    proto.pieces.add(piece="plain")
    proto.pieces.add(piece="<0x00>", score=-2.5, type=BYTE)
    (tmp_path / "tokenizer.model").write_bytes(proto.SerializeToString())
    expected = SentencePieceModel((Piece("plain"), Piece("<0x00>", -2.5, BYTE)), add_dummy_prefix=True)
    assert read_sentencepiece(tmp_path / "tokenizer.model") == expected
