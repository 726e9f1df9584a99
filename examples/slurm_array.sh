#!/usr/bin/env bash
# A Slurm array: each task converts its share of the classes, the last one to finish writes the file.
# sbatch examples/slurm_array.sh MODEL DATA
#SBATCH --array=1-16
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --requeue
set -euo pipefail
srun --ntasks=1 protonmf convert "$1" --data "$2" -o prototypes.safetensors --share auto
