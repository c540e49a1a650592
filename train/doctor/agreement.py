"""Do all ranks mean the same run: a node with another config, or another copy of the data, trains garbage."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from prismcap.configs.load import to_yaml
from prismcap.configs.schema.run import RunConfig
from prismcap.data.mix import Mix
from prismcap.data.schema import ImagePart, Sample, SampleRejected
from prismcap.train.distributed import Ranks
from prismcap.train.doctor.findings import DoctorError, Finding, error, ok

# read from each source at even distances: what differs between two copies is seldom a single row
NUM_COMPARED = 64


def config_hash(config: RunConfig) -> str:
    """Of every key, defaults included."""
    return _hash(to_yaml(config).encode())


def data_hash(mix: Mix) -> str:
    """Of each source's length and repeat, and of the texts and picture places of samples spread over it.

    Pictures themselves are not read.
    """
    digest = hashlib.blake2b(digest_size=8)
    for source, repeat in mix.sources:
        digest.update(f"{len(source)} x {repeat}\n".encode())
        for index in range(0, len(source), max(1, len(source) // NUM_COMPARED)):
            try:
                digest.update(_said(source[index]).encode())
            except SampleRejected as problem:
                digest.update(problem.reason.encode())
    return digest.hexdigest()


def _said(sample: Sample) -> str:
    turns = [
        (
            message.role,
            message.train,
            [part.index if isinstance(part, ImagePart) else part.text for part in message.parts],
        )
        for message in sample.messages
    ]
    return repr((sample.id, sample.source, len(sample.images), turns))


def _hash(text: bytes) -> str:
    return hashlib.blake2b(text, digest_size=8).hexdigest()


def check_agreement(what: str, value: str, ranks: Ranks) -> Finding:
    """Whether `value` (a hash of `what`) is the same on every rank. Collective; the same on every rank."""
    values = ranks.gather(value)
    others = [rank for rank, other in enumerate(values) if other != values[0]]
    if not others:
        return ok(
            f"{what}: the same on {'this rank' if len(values) == 1 else f'all {len(values)} ranks'} ({value})"
        )
    return error(
        f"{what} differs between ranks: {values[0]} on rank 0, {values[others[0]]} on rank {others[0]} "
        f"({len(others)} of {len(values)} differ from rank 0)",
        "Give every node the same command, files and code.",
    )


def require_agreement(what: str, value: Callable[[], str], ranks: Ranks) -> None:
    """Raises DoctorError, on every rank, when `value()` is not the same everywhere. Collective."""
    if ranks.world_size == 1:
        return
    finding = check_agreement(what, value(), ranks)
    if finding.level == "error":
        raise DoctorError(f"{finding.what}. {finding.remedy}")
