"""What pycocoevalcap says of the captions in tests/assets/golden/caption_metrics.json.

    pip install --no-deps pycocoevalcap && python tests/evaluate/metrics/pycoco_reference.py

writes its answers into that file, beside the texts, which are written by hand. Needs Java and a UTF-8 locale.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parents[2] / "assets" / "golden" / "caption_metrics.json"
COMMAND = "python tests/evaluate/metrics/pycoco_reference.py"


def missing() -> str:
    """Why pycocoevalcap cannot be asked here; "" where it can."""
    if shutil.which("java") is None:
        return "no java on the PATH"
    try:
        metadata.version("pycocoevalcap")
    except metadata.PackageNotFoundError:
        return "pycocoevalcap is not installed"
    return ""


def tokenized(texts: list[str]) -> list[str]:
    """Each text by itself: a text of one word between two keeps them from seeing each other."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    captions = [{"caption": text} for pair in zip(texts, ["x"] * len(texts), strict=True) for text in pair]
    found: list[str] = PTBTokenizer().tokenize({0: captions})[0]
    return found[::2]


def scores(references: list[list[str]], texts: list[str]) -> dict[str, Any]:
    """BLEU, ROUGE-L, CIDEr and METEOR of texts that are tokenized, over all and of each."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    given = dict(enumerate(references))
    asked = {number: [text] for number, text in enumerate(texts)}
    bleu, bleu_items = Bleu(4).compute_score(given, asked, verbose=0)
    found: dict[str, Any] = {
        f"bleu_{size + 1}": {"all": bleu[size], "items": bleu_items[size]} for size in range(4)
    }
    for name, scorer in (("rouge_l", Rouge()), ("cider_d", Cider())):
        score, items = scorer.compute_score(given, asked)
        found[name] = {"all": float(score), "items": [float(value) for value in items]}
    return found


def meteor_scores(references: list[list[str]], texts: list[str]) -> dict[str, Any]:
    """METEOR's, with the statistics that its program counts. Takes some 20 seconds."""
    from pycocoevalcap.meteor.meteor import Meteor

    scorer = Meteor()
    given = dict(enumerate(references))
    score, items = scorer.compute_score(given, {number: [text] for number, text in enumerate(texts)})
    lines = [scorer._stat(text, given[number]) for number, text in enumerate(texts)]
    return {"all": score, "items": items, "statistics": lines}


def versions() -> dict[str, str]:
    said = subprocess.run(["java", "-version"], capture_output=True, text=True, check=True)
    return {
        "command": COMMAND,
        "pycocoevalcap": metadata.version("pycocoevalcap"),
        "java": (said.stderr + said.stdout).splitlines()[0],
        "python": platform.python_version(),
        "numpy": metadata.version("numpy"),
    }


def main() -> None:
    golden = json.loads(GOLDEN.read_text())
    texts = [item["text"] for item in golden["items"]]
    references = [item["references"] for item in golden["items"]]
    lines = [line["text"] for line in golden["lines"]]
    found = iter(tokenized([*texts, *(text for group in references for text in group), *lines]))
    text_tokens = [next(found) for _ in texts]
    reference_tokens = [[next(found) for _ in group] for group in references]
    for item, text, group in zip(golden["items"], text_tokens, reference_tokens, strict=True):
        item["tokens"] = {"text": text, "references": group}
    for line in golden["lines"]:
        line["tokens"] = next(found)
    golden["made_with"] = versions()
    golden["scores"] = scores(reference_tokens, text_tokens)
    golden["scores"]["meteor"] = meteor_scores(reference_tokens, text_tokens)
    GOLDEN.write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
