"""One contender in a process of its own: JSON lines in, JSON lines out.

`python -m prismcap.train.bench.child SPEC`, SPEC being JSON: {"job": …, and that job's own keys}. It says
{"ready": …} when it is set up; then each line {"step": k} is answered with that step's figures. An
answer {"unfit": reason} means that this contender cannot run here; any other failure ends the process.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from prismcap.configs.errors import ConfigError
from prismcap.train.allocator import keep_freed_memory
from prismcap.train.bench.job import Figures, Job, Spec, UnfitError


def training(spec: Spec) -> Job:
    from prismcap.train.bench.train_job import build

    return build(spec)


def loss(spec: Spec) -> Job:
    from prismcap.train.bench.loss import build

    return build(spec)


def generation(spec: Spec) -> Job:
    from prismcap.train.bench.generate import build

    return build(spec)


def rates(spec: Spec) -> Job:
    from prismcap.train.bench.rates import build

    return build(spec)


JOBS: dict[str, Callable[[Spec], Job]] = {
    "train": training,
    "loss": loss,
    "generate": generation,
    "rates": rates,
}


def main() -> None:
    """Serve until standard input ends."""
    # whatever libraries print goes to standard error; the old standard output carries answers alone
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(value: Figures) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    keep_freed_memory()  # as a training run does, for all contenders
    _be_first_to_go()
    spec = json.loads(sys.argv[1])
    try:
        started_s = time.perf_counter()
        job = JOBS[spec["job"]](spec)
        say({"ready": True, "set_up_s": time.perf_counter() - started_s})
        for line in sys.stdin:
            say(job.run(json.loads(line)["step"]))
    except UnfitError as error:
        say({"unfit": str(error)})
    except ConfigError as error:
        say({"error": str(error)})


def _be_first_to_go() -> None:
    """If memory runs out, the system should end a benchmark rather than somebody's work (Linux)."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError:
        return


if __name__ == "__main__":
    main()
