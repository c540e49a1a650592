"""Stands for `prismcap train`: fake_train.py RUN_DIR --until STAGE, with the standard library alone.

Notes its start in <ablation>/starts.txt and obeys <ablation>/fake.json: {unit: what it is to do}, which is
"fail", "hang" (until it is told to stop, then it saves), "stop" (end as if stopped from outside) or "meet"
(wait until two have started).
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

run_dir, until = Path(sys.argv[1]), sys.argv[3]
folder = run_dir.parents[1]
unit = f"{run_dir.parent.name}/{run_dir.name}"
with (folder / "starts.txt").open("a") as file:
    file.write(f"{unit}\n")
orders = folder / "fake.json"
what = json.loads(orders.read_text()).get(unit) if orders.exists() else None


def save(*_):
    (run_dir / "saved").touch()
    sys.exit(0)


signal.signal(signal.SIGTERM, save)
print(f"training {unit} with {os.environ.get('OMP_NUM_THREADS')} threads")
if what == "fail":
    print("Error: no such data")
    sys.exit(3)
if what == "stop":
    sys.exit(0)
give_up = time.monotonic() + 20
while what == "hang" and time.monotonic() < give_up:
    time.sleep(0.02)
while what == "meet" and len((folder / "starts.txt").read_text().split()) < 2:
    if time.monotonic() > give_up:
        sys.exit(4)
    time.sleep(0.02)
for stage in ("align", "instruct"):
    (run_dir / stage / "final").mkdir(parents=True, exist_ok=True)
    if stage == until:
        break
