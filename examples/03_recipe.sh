#!/usr/bin/env bash
# Distil from the command line: a YAML recipe, each key of which can be overridden.
#
#     TEACHER=folder-or-hub-name DATA=folder bash examples/03_recipe.sh [--trainer.max_epochs 1 ...]
set -euo pipefail
lightning-distilbert fit --config recipes/text-classification.yaml \
  --model.teacher "$TEACHER" --data.source "$DATA" --data.text sentence --model.student.layers 2 \
  --student_dir student "$@"
