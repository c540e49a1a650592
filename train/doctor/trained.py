"""Does a stage train what it says: parameters by group, and how the loss and its gradient behave."""

from __future__ import annotations

import math

from torch import Tensor

from prismcap.configs.schema.stage import StageConfig, TextTowerConfig
from prismcap.data.schema import Batch
from prismcap.model.captioner import Captioner
from prismcap.model.precision import autocast
from prismcap.model.trainable import GROUPS, group_of, trainable_parameters
from prismcap.train.doctor.findings import Finding, error, ok, warning

# a model that knows nothing has a loss of ln(vocabulary); far above it, something is wrong
MOST_OF_LN_VOCABULARY = 1.5
# no to every question of a contrastive stage costs -start_bias for each pair, yes and no at even odds N ln 2
MOST_OF_START = 1.5


def check_groups(name: str, captioner: Captioner, stage: StageConfig) -> list[Finding]:
    """Of a captioner that prepare_stage has made ready: groups of `train` train, all others are frozen."""
    findings = []
    for group in GROUPS:
        own = [(key, value) for key, value in captioner.named_parameters() if group_of(key) == group]
        trained = [(key, value.numel()) for key, value in own if value.requires_grad]
        weights, total = sum(size for _, size in trained), sum(value.numel() for _, value in own)
        text = f"{name}: {group} trains {weights:,} of {total:,} weights in {len(trained)} tensors"
        config = stage.train.get(group)
        if config is None and not own:
            continue  # a text tower is there in its own stage alone
        if config is None and trained:
            findings.append(
                error(f"{text}, but is not in stages.{name}.train", f"{trained[0][0]} must be frozen.")
            )
        elif config is None:
            findings.append(ok(f"{name}: {group} is frozen ({total:,} weights)"))
        elif not trained:
            findings.append(
                error(
                    f"{text}, but stages.{name}.train names it", f"Take {group} out of stages.{name}.train."
                )
            )
        elif config.lora is not None and (plain := [key for key, _ in trained if "lora_" not in key]):
            findings.append(error(f"{text}: {plain[0]} is no adapter", "With lora, only adapters may train."))
        else:
            findings.append(ok(f"{text} ({config.how})"))
    return findings


def check_learning(name: str, captioner: Captioner, batch: Batch, stage: StageConfig) -> list[Finding]:
    """One forward and backward pass of a few samples: the loss is sane, every trained tensor has a gradient.

    Gradients are let go one by one; the weights stay as they are.
    """
    norms: dict[str, float] = {}

    def note(key: str) -> object:
        def hook(parameter: Tensor) -> None:
            assert parameter.grad is not None
            norms[key] = norms.get(key, 0.0) + float(parameter.grad.float().norm()) ** 2
            parameter.grad = None

        return hook

    trained = trainable_parameters(captioner)
    handles = [value.register_post_accumulate_grad_hook(note(key)) for key, value in trained.items()]
    captioner.train()
    try:
        with autocast(captioner.device, stage.precision):
            output = captioner(batch.to(captioner.device))
        output.loss_sum.backward()
    finally:
        for handle in handles:
            handle.remove()
    targets = output.num_target_tokens
    loss = float(output.loss_sum.detach()) / max(1, targets)
    # as a step has it: of the mean over the supervised tokens
    norms = {key: value / max(1, targets) ** 2 for key, value in norms.items()}
    if stage.kind == "contrastive":
        sizes = stage.train["text_tower"].sizes or TextTowerConfig()
        finding = _pair_loss_finding(name, loss, targets, -sizes.start_bias)
    else:
        finding = _loss_finding(name, loss, targets, captioner.llm.get_input_embeddings().num_embeddings)
    return [finding, *_gradient_findings(name, norms, list(trained))]


def _loss_finding(name: str, loss: float, targets: int, vocabulary: int) -> Finding:
    highest = math.log(vocabulary)
    text = f"{name}: the loss of {targets} supervised tokens is {loss:.3f} (knowing nothing: {highest:.2f})"
    if not math.isfinite(loss):
        return error(text, "Train in fp32, or look for weights that are not finite.")
    if targets == 0 or loss <= 0:
        return error(text, f"Nothing is learned from these samples: prismcap data inspect --stage {name}")
    if loss > MOST_OF_LN_VOCABULARY * highest:
        return warning(text, "Is this the tokenizer of this LLM, and the template it was trained with?")
    return ok(text)


def _pair_loss_finding(name: str, loss: float, num_pairs: int, start: float) -> Finding:
    text = f"{name}: the loss of {num_pairs} pairs is {loss:.3f} (answering no: {start:.2f})"
    if not math.isfinite(loss):
        return error(text, "Train in fp32, or look for weights that are not finite.")
    if num_pairs == 0:
        return error(text, f"Nothing is learned from these samples: prismcap data inspect --stage {name}")
    if loss > MOST_OF_START * max(start, num_pairs):
        return warning(text, "Are the pictures normalised as the vision encoder expects?")
    return ok(text)


def _gradient_findings(name: str, norms: dict[str, float], trained: list[str]) -> list[Finding]:
    unread = [key for key in trained if key not in norms]
    if unread:
        return [
            error(
                f"{name}: the gradient does not reach {len(unread)} of {len(trained)} trained tensors, "
                f"such as {unread[0]}",
                "A vision encoder must name what it does not read in unused_parameters(); nothing else may "
                "have such weights.",
            )
        ]
    findings = []
    for group in dict.fromkeys(group_of(key) for key in trained):
        norm = math.sqrt(sum(value for key, value in norms.items() if group_of(key) == group))
        text = f"{name}: gradient norm of {group}: {norm:.3g}"
        if not math.isfinite(norm):
            findings.append(error(text, "Train in fp32, or look for weights that are not finite."))
        elif norm == 0:
            findings.append(
                error(text, f"It learns nothing: do the samples have pictures, is {group} connected?")
            )
        else:
            findings.append(ok(text))
    return findings
