#!/usr/bin/env bash
# mypy over the six folders under the names they are imported by. It cannot follow the editable
# install's finder hook, so it is pointed at a tree of links (.typecheck/prismcap/<folder>).
set -euo pipefail
cd "$(dirname "$0")/.."
rm -rf .typecheck
mkdir -p .typecheck/prismcap
for folder in configs data model train evaluate scripts; do
    ln -s "../../$folder" ".typecheck/prismcap/$folder"
done
exec mypy -p prismcap
