#!/usr/bin/env bash
# Prism on the demo's captioner: it describes held-out scenes, and a rule and SmolLM2 (in the process, and behind
# an OpenAI-compatible server that this script starts) answer questions from its descriptions alone.
# Can be stopped and run again at any point: what was answered is not asked again.
#   scripts/demo_prism.sh [key.sub=value …]      about 8 minutes on 2 CPU cores, after scripts/demo.sh
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh

port=8765 model=smollm2-135m-instruct # as configs/demo/prism.yaml says
models="${PRISMCAP_CACHE:-$HOME/.cache/prismcap}/models"
if [ ! -e checkpoints/demo/instruct/final/manifest.json ]; then
    echo "Error: there is no captioner in checkpoints/demo yet: run scripts/demo.sh first" >&2
    exit 2
fi

make_environment "demo"
export PATH="$PWD/.venv/bin:$PATH" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

answers() {
    python -c "import urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:$port/health', timeout=5)" 2>/dev/null
}

if answers; then
    echo "Error: something listens on 127.0.0.1:$port already: end it first" >&2
    exit 2
fi
say "Starting transformers serve with $model on 127.0.0.1:$port (its log: checkpoints/demo-prism-server.log)"
# `transformers serve` finds the folder by its name from where it is started
(cd "$models" && exec transformers serve "$model" --host 127.0.0.1 --port "$port") >checkpoints/demo-prism-server.log 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null || true' EXIT
until answers; do
    if ! kill -0 "$server" 2>/dev/null; then
        echo "Error: the server ended; its last words:" >&2
        tail -5 checkpoints/demo-prism-server.log >&2
        exit 1
    fi
    sleep 1
done

say "Describing, reasoning, scoring"
prismcap prism run demo/prism "$@"
