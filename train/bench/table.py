"""Benchmarks as text: tables, ratios with their spread, and the terms they were measured on."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from prismcap.train.bench.cases import TrainCase
from prismcap.train.bench.train import LLAVA, LLAVA_TUNED, Outcome, peak, ratios, total

LABELS = {
    "ours": "ours",
    "ours_compiled": "ours, compiled",
    LLAVA: "(a) LLaVA",
    LLAVA_TUNED: "(a+) LLaVA, tuned",
}
# pictures of LLaVA-1.5 and of SigLIP-SO400M/14 at 384 px
REAL_VISUAL_TOKENS = (576, 729)


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, the first one to the left; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, and the extremes."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} .. {max(values):.{digits}f})"


def train_report(outcome: Outcome) -> str:
    """What `bench train` prints for one case."""
    case = TrainCase.model_validate(outcome.case)
    scaled = "" if case.visual_tokens in REAL_VISUAL_TOKENS else " (scaled down from 576, for speed)"
    title = (
        f"{case.mix} · {case.stage} · {case.size} · {case.precision} · {case.samples_per_step} samples "
        f"a step · {case.visual_tokens} visual tokens a picture{scaled}"
    )
    parts = [title, "", train_table(outcome), "", *ratio_lines(outcome), *loss_lines(outcome)]
    return "\n".join([*parts, "", *fair_terms(case, outcome)])


def train_table(outcome: Outcome) -> str:
    """One row per contender. Sums over the repeats; memory is the largest of them."""
    heading = (
        "",
        "micro-batch",
        "samples/s",
        "superv. tok/s",
        "padding",
        "peak MB",
        "MFU",
        "HFU",
        "batching",
        "compile s",
    )
    rows: list[tuple[str, ...]] = [heading]
    rate = median(one["flops_per_s"] for one in outcome.rates)
    for name, steps in outcome.steps.items():
        time_s = total(steps, "time_s")
        compile_s = outcome.warm_up[name]["compile_s"] + total(steps, "compile_s")
        rows.append(
            (
                LABELS[name],
                micro_batch(outcome, name),
                f"{total(steps, 'num_samples') / time_s:.3g}",
                f"{total(steps, 'num_target_tokens') / time_s:.1f}",
                f"{100 * (1 - total(steps, 'num_tokens') / total(steps, 'num_positions')):.1f} %",
                f"{peak(steps):,.0f}",
                f"{total(steps, 'model_flops') / time_s / rate:.2f}",
                f"{total(steps, 'executed_flops') / time_s / rate:.2f}",
                f"{100 * total(steps, 'batching_s') / time_s:.2f} %",
                f"{compile_s:.0f}" if compile_s else "-",
            )
        )
    return text_table(rows)


def micro_batch(outcome: Outcome, name: str) -> str:
    """How a contender cuts its step."""
    spec = outcome.specs[name]
    if spec["contender"] == "ours":
        return f"{outcome.case['rows_per_micro_batch']} x {outcome.case['row_tokens']} packed"
    return f"{spec['rows']} padded{', compiled' if spec['compiled'] else ''}"


def ratio_lines(outcome: Outcome) -> list[str]:
    """Ours over the references."""
    found = ratios(outcome.steps)
    width = max((len(f"{LABELS[one.ours]} / {LABELS[one.reference]}") for one in found), default=0)
    repeats = len(next(iter(outcome.steps.values())))
    return [
        f"{f'{LABELS[one.ours]} / {LABELS[one.reference]}'.ljust(width)}  {one.speed:.2f} x the samples/s "
        f"(from {one.lowest:.2f} to {one.highest:.2f} over {repeats} repeats), {one.memory:.2f} x the memory"
        for one in found
    ]


def loss_lines(outcome: Outcome) -> list[str]:
    """Losses, in fp32 where they must agree, and of the race."""
    checked = ", ".join(f"{LABELS[name]} {loss:.6f}" for name, loss in outcome.checked_losses.items())
    lines = [f"Loss of a first step in fp32: {checked}"]
    for name, steps in outcome.steps.items():
        losses = [outcome.warm_up[name]["loss"], *(step["loss"] for step in steps)]
        shown = " ".join(f"{loss:.4f}" for loss in losses)
        lines.append(f"Losses in {outcome.case['precision']}, {LABELS[name]}: {shown}")
    return lines


def fair_terms(case: TrainCase, outcome: Outcome) -> list[str]:
    """On what terms the contenders met."""
    rate = f"{spread([one['flops_per_s'] / 1e12 for one in outcome.rates], 3)} TFLOP/s"
    terms = [
        "One process tree on one machine; each contender is a child process of its own; they take turns step "
        "by step, beginning with another one each time.",
        f"The same samples (random tokens in the lengths of {case.mix}), the same weights at the start, "
        f"{case.precision} (autocast over fp32 weights), {case.num_threads} threads, the same allocator "
        "settings, fused AdamW and clipping; all samples of a step make one optimiser step.",
        "The vision encoder is frozen and its features come precomputed, for all: its time is in no row.",
        "(a): LlavaForConditionalGeneration, SDPA, one right-padded row per sample, logits at every "
        f"position, its built-in loss; the fastest of its micro-batches{tries(outcome, LLAVA)}.",
        "(a+): the same with samples of like length together, logits only at supervised positions "
        "(logits_to_keep), and each layer of the LLM under torch.compile where that was faster"
        f"{tries(outcome, LLAVA_TUNED)}.",
        "samples/s and ratios are of steps in which nothing was compiled; compile s stands apart. A ratio "
        "is the median over the repeats.",
        "peak MB: of the child process within a step, weights, gradients and optimiser state included.",
        "MFU: the operations that the step asks for (real tokens, attention over what a token may see, no "
        "weight gradients of frozen parts, logits where there is a target) over time and the rate of matrix "
        f"products at the model's own shapes: {rate} on {outcome.rates[0]['device']}. HFU: what this "
        "contender executes, padding, masked attention and unread logits included.",
        "batching: making the step's batches, inside of its time; no worker reads ahead here "
        "(`prismcap bench data` measures the loader).",
    ]
    return ["Terms", *(f"- {term}" for term in terms)]


def tries(outcome: Outcome, name: str) -> str:
    """What was tried for a reference, in words."""
    if name not in outcome.pilots:
        return ""
    shown = []
    for one in outcome.pilots[name]:
        took = f"{one['time_s']:.1f} s" if "time_s" in one else f"not run: {one['unfit']}"
        shown.append(f"{one['rows']} rows{' compiled' if one['compiled'] else ''} {took}")
    return f" ({'; '.join(shown)} for a step)"
