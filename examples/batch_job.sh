#!/usr/bin/env bash
# A CI job: convert once, then fail the build when the model is not the classifier any more.
# examples/batch_job.sh MODEL DATA
set -euo pipefail
protonmf convert "$1" --data "$2" -o audit.safetensors --force --json > conversion.json
protonmf evaluate --data "$2" --model audit.safetensors --min-agreement 1 --max-residual-share 0.5 --max-skipped 0.02 \
    --junit-xml gates.xml --force --json > evaluation.json
protonmf report --data "$2" --model audit.safetensors --evaluation evaluation.json -o report.html --force
find "$2/val" -name '*.*' -type f | head -20 | protonmf explain - --model audit.safetensors --jsonl > explanations.jsonl
