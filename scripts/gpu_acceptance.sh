#!/usr/bin/env bash
# Checks on one GPU what a CPU cannot show (tests/gpu), prints a line for each claim, and writes README's
# table anew. Under 30 minutes after the downloads. Without a GPU: says so, touches nothing, exit status 2.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/environment.sh
. scripts/environment.sh

if [ $# -gt 0 ]; then
    echo "Error: unknown argument '$1'. Usage: scripts/gpu_acceptance.sh" >&2
    exit 2
fi
if ! nvidia-smi -L 2>/dev/null | grep -q '^GPU '; then
    echo "No GPU here (nvidia-smi lists none): nothing was run, nothing was written." >&2
    exit 2
fi

make_environment "deepspeed,demo,dev,wandb"
export PATH="$PWD/.venv/bin:$PATH" TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 WANDB_MODE=offline
say "Installing the GPU's own packages (extra gpu; flash-attn may compile for a while)"
for package in flash-attn bitsandbytes liger-kernel; do
    # one by one: what cannot be had here leaves its own rows "never run", and not all
    install_locked --no-build-isolation "$package" || echo "($package cannot be installed here)"
done
export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}"
say "Running tests/gpu"
exec python -m prismcap.scripts.acceptance
