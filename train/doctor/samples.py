"""What a stage's first samples look like to the model, and whether their masks say what they should."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prismcap.data.encode import Encoder
from prismcap.data.inspect import Run, token_runs
from prismcap.data.mix import Mix
from prismcap.data.pack import ImageInputs, Inputs, collate, read_images
from prismcap.data.pairs import PairEncoder
from prismcap.data.schema import Batch, Encoded, Sample, SampleRejected
from prismcap.train.doctor.findings import Finding, error, ok, warning

NUM_SHOWN = 3
# so that a mix of which nearly all is rejected still ends
TRIED_PER_SHOWN = 10
SHOWN_CHARACTERS = 600
GREEN, DIM, RESET = "\x1b[32m", "\x1b[2m", "\x1b[0m"


@dataclass(frozen=True)
class Drawn:
    """The first usable samples in the order of training, one to a row of `batch`, and why others were not."""

    samples: tuple[tuple[Sample, Encoded], ...]
    rejected: tuple[str, ...]
    batch: Batch


def draw_samples(mix: Mix, encoder: Encoder, images: ImageInputs, num: int = NUM_SHOWN) -> Drawn:
    """Encodes samples and reads their pictures as training does."""
    samples: list[tuple[Sample, Encoded]] = []
    inputs: Inputs = {}
    rejected: list[str] = []
    for position in range(min(len(mix), num * TRIED_PER_SHOWN)):
        if len(samples) == num:
            break
        try:
            sample = mix.sample_at(position)
            encoded = encoder.encode(sample)
            read_images(encoded, images, inputs)
            samples.append((sample, encoded))
        except SampleRejected as problem:
            rejected.append(f"{problem.reason}: {problem}")
    batch = collate([[encoded] for _, encoded in samples], encoder.pad_id, inputs, images.kind)
    return Drawn(tuple(samples), tuple(rejected), batch)


def show(encoded: Encoded, encoder: Encoder, colour: bool) -> str:
    """A sample as the model sees it; what is supervised (or compared, in a pair) is green, or in ⟦ ⟧."""
    runs, of_pair = list(token_runs(encoded, encoder)), isinstance(encoder, PairEncoder)
    text = "".join(_shown(run, colour, of_pair) for run in runs)
    head = f"{encoded.id}: {len(encoded)} tokens, {encoded.num_target_tokens} supervised"
    if of_pair:
        compared = sum(run.num_tokens for run in runs if run.kind == "compared")
        head = f"{encoded.id}: a picture compared with {compared} tokens of text"
    cut = f", {encoded.cut_tokens} cut off" if encoded.cut_tokens else ""
    return f"{head}{cut}\n{text}"


def _shown(run: Run, colour: bool, of_pair: bool) -> str:
    if run.kind == "image":
        text = f"<picture {run.text}>" if of_pair else f"<picture {run.text}: {run.num_tokens} tokens>"
        return f"{DIM}{text}{RESET}" if colour else text
    half = SHOWN_CHARACTERS // 2
    text = run.text if len(run.text) <= SHOWN_CHARACTERS else f"{run.text[:half]} … {run.text[-half:]}"
    if run.kind == "context":
        return text
    return f"{GREEN}{text}{RESET}" if colour else f"⟦{text}⟧"


def check_samples(stage: str, drawn: Drawn, encoder: Encoder) -> list[Finding]:
    """There are samples, most are usable, and their masks hold exactly the assistant's text."""
    if not drawn.samples:
        reasons = "\n".join(drawn.rejected[:5])
        return [
            error(
                f"{stage}: none of the first {len(drawn.rejected)} samples can be used:\n{reasons}",
                f"Look at stages.{stage}.data and template (prismcap data inspect --stage {stage}).",
            )
        ]
    findings = []
    tried = len(drawn.samples) + len(drawn.rejected)
    if drawn.rejected:
        findings.append(
            warning(
                f"{stage}: {len(drawn.rejected)} of {tried} samples rejected, the first: {drawn.rejected[0]}",
                f"Mend the data, or see them all: prismcap data inspect --stage {stage}",
            )
        )
    if isinstance(encoder, PairEncoder):
        findings.append(ok(f"{stage}: pairs of a picture and a text; there is no mask to check"))
        return findings
    wrong = [problem for item in drawn.samples if (problem := mask_problem(*item, encoder))]
    if wrong:
        findings.append(
            error(
                f"{stage}: the mask is not the assistant's text: {wrong[0]}",
                f"See prismcap data inspect --stage {stage}; the template or tokenizer is at fault.",
            )
        )
    else:
        findings.append(ok(f"{stage}: supervised is the assistant's text, {_share(drawn.samples)}"))
    return findings


def mask_problem(sample: Sample, encoded: Encoded, encoder: Encoder) -> str | None:
    """How the supervised text differs from what the assistant says in the sample; None if it does not.

    The answers must stand in it whole and in order, and between them nothing that is said by another role:
    only the template's marks. Spaces do not count, some tokenizers do not give them back. Of a sample that
    was cut, answers are compared up to the cut.
    """
    runs = [run.text for run in token_runs(encoded, encoder) if run.kind == "trained"]
    answers = [message.text() for message in sample.messages if message.train]
    for run in runs:
        # a mask that begins too early holds the line break that opens the assistant's turn
        if run.lstrip(" ")[:1].isspace() and not any(answer[:1].isspace() for answer in answers):
            return f"sample {encoded.id!r} trains {run[:20]!r}: a line break stands before the answer"
    trained = _squeezed("".join(runs))
    rest, between = trained, ""
    for message in sample.messages:
        answer = _squeezed(message.text())
        if not message.train:
            continue
        before, found, after = rest.partition(answer)
        if not found and encoded.cut_tokens:
            break
        if not found:
            return (
                f"sample {encoded.id!r} should train {message.text()[:80]!r}, its mask holds {trained[:80]!r}"
            )
        between, rest = between + before, after
    for text in _others(sample):
        if text in between + rest:
            return f"sample {encoded.id!r} trains what the assistant does not say: {text[:80]!r}"
    return None


def _others(sample: Sample) -> list[str]:
    """What must not be trained; very short texts may well occur in an answer."""
    texts = [_squeezed(message.text()) for message in sample.messages if not message.train]
    return [text for text in texts if len(text) > 8]


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _share(samples: Sequence[tuple[Sample, Encoded]]) -> str:
    targets = sum(encoded.num_target_tokens for _, encoded in samples)
    return f"{targets} of {sum(len(encoded) for _, encoded in samples)} tokens"
