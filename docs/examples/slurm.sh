#!/usr/bin/env bash
# Two machines with four GPUs each: sbatch docs/examples/slurm.sh
#SBATCH --job-name=spanbox
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
set -euo pipefail

first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
run_dir=runs/gmner-8-gpus
resume=()
if [[ -e "$run_dir/checkpoints/last" ]]; then  # the job was queued again
  resume=(--resume)
fi

srun torchrun \
  --nnodes "$SLURM_NNODES" --nproc-per-node 4 \
  --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$first_node:29500" \
  -m spanbox train gmner \
  data.train=data/gmner/train.jsonl data.val=data/gmner/val.jsonl \
  model.text.path=models/bert-base-uncased model.vision.path=models/vit-base-patch16-224-in21k \
  train.batch_size=1024 run.dir="$run_dir" "${resume[@]}"
