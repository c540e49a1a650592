"""The units of an ablation as SLURM jobs: an array for each wave, and one that collects at the end."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from prismcap.configs.errors import ConfigError
from prismcap.configs.files import replace_text
from prismcap.configs.schema.ablation import AblationConfig
from prismcap.train.ablate.status import ABLATION
from prismcap.train.ablate.units import Unit

FOLDER, SUBMIT = "slurm", "submit.sh"
GPUS = ("--gres", "--gpus", "-G")  # options that ask for some: none are needed to collect

# how a bash script learns of a child's end while a trapped signal cuts its waiting short: as scripts/slurm.sh
_TASK = """\
preempted=false
mapfile -t units <{units}
"${{PYTHON:-{python}}}" -m prismcap.scripts.cli ablate {ablation} --unit "${{units[$SLURM_ARRAY_TASK_ID]}}" &
task=$!
stop() {{
    preempted=true
    kill -USR1 "$task" || true # it may have just ended
}}
trap stop USR1
status=0
wait "$task" || status=$?
while [ "$status" -gt 128 ] && kill -0 "$task" 2>/dev/null; do
    status=0
    wait "$task" || status=$?
done
if [ "$status" -gt 128 ]; then # ended while the wait was cut short: bash still knows how
    status=0
    wait "$task" || status=$?
fi
if $preempted; then
    echo "Pre-empted: queued again."
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""
_COLLECT = '"${{PYTHON:-{python}}}" -m prismcap.scripts.cli ablate {ablation} --report-only\n'


def write_jobs(folder: Path, config: AblationConfig, units: Sequence[Unit]) -> Path:
    """Write <folder>/slurm/: for each wave of `units` a script and their list, collect.sh, and submit.sh,
    which hands them all to sbatch, each after the ones before. Returns submit.sh. Raises OSError."""
    jobs = folder.resolve() / FOLDER
    jobs.mkdir(parents=True, exist_ok=True)
    for old in jobs.glob("wave-*"):
        if old.suffix in (".sh", ".txt"):
            old.unlink()
    names = {"python": shlex.quote(sys.executable), "ablation": shlex.quote(str(jobs.parent / ABLATION))}
    waves = {number: list(of_wave) for number, of_wave in groupby(units, key=lambda unit: unit.wave)}
    for number, of_wave in waves.items():
        units_file = jobs / f"wave-{number}.txt"
        replace_text(units_file, "".join(f"{unit.id}\n" for unit in of_wave))
        options = [
            f"--array=0-{len(of_wave) - 1}%{config.launch.parallel}",
            "--signal=B:USR1@120",  # two minutes before the node is taken away; training then saves
            "--requeue",
            "--open-mode=append",
        ]
        task = _TASK.format(**names, units=shlex.quote(str(units_file)))
        _write_script(jobs / f"wave-{number}.sh", config, f"wave-{number}", options, task)
    _write_script(jobs / "collect.sh", config, "collect", [], _COLLECT.format(**names))
    lines = ["#!/usr/bin/env bash", "set -euo pipefail", f"cd {shlex.quote(str(jobs))}", "after="]
    for name in [*(f"wave-{number}" for number in waves), "collect"]:
        # --parsable prints the job's number, and the cluster's name after a semicolon
        lines.append(f'job=$(sbatch --parsable ${{after:+"$after"}} {name}.sh)')
        lines.append(f'echo "{name}: job ${{job%%;*}}"')
        lines.append('after="--dependency=afterany:${job%%;*}"')
    _put(jobs / SUBMIT, "\n".join(lines) + "\n")
    return jobs / SUBMIT


def _write_script(path: Path, config: AblationConfig, name: str, options: Sequence[str], body: str) -> None:
    """What the user says of sbatch comes last, and wins."""
    output = "%A_%a" if name != "collect" else "%j"
    always = [f"--job-name={config.name}-{name}", f"--output={name}-{output}.out", "--nodes=1", "--ntasks=1"]
    lines = ["#!/usr/bin/env bash", *(f"#SBATCH {option}" for option in (*always, *options))]
    wanted = [option for option in config.launch.sbatch if name != "collect" or not option.startswith(GPUS)]
    lines += [f"#SBATCH {option}" for option in wanted]
    lines += ["set -euo pipefail", f"cd {shlex.quote(str(Path.cwd()))}"]
    _put(path, "\n".join(lines) + "\n" + body)


def _put(path: Path, text: str) -> None:
    replace_text(path, text)
    path.chmod(0o755)


def submit(script: Path) -> str:
    """Run submit.sh; returns what it says: the jobs' numbers. Raises ConfigError where sbatch is missing or
    refuses."""
    done = subprocess.run([str(script)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ConfigError(
            f"launch.name: slurm: the jobs were not all taken: {done.stderr.strip()}\nThe scripts are in "
            f"{script.parent}. Mend launch.sbatch, or run {script} on a machine that has sbatch."
        )
    return done.stdout.strip()
