#!/usr/bin/env bash
# The whole way once, on the built-in sample: UMLS files and abstracts in, a trained KeBioLM out. CPU only, offline.
# Usage: launch/quickstart.sh [OUT]     (from the repository's root, with the virtual environment's bin on PATH)
set -euo pipefail
out=${1:-quickstart}
export DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES= HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

step() { printf '\n== %s\n' "$1"; }
[ ! -e "$out" ] || { echo "error: $out exists, from an earlier run? Remove it (rm -r $out) or give another folder" >&2; exit 2; }

step "1/8 a miniature UMLS and PubMed"
kebiolm sample "$out/sample"
step "2/8 knowledge base"
kebiolm kb build --umls "$out/sample/umls" --out "$out/kb"
step "3/8 annotation: mentions and their entities, on a local Ray"
kebiolm annotate "$out"/sample/pubmed/* --kb "$out/kb" --model dictionary --out "$out/annotated" --workers 2
kebiolm annotate-eval "$out/annotated" --gold "$out/sample/gold.pubtator.txt" --codes "$out/sample/codes.tsv"
step "4/8 packed shards"
kebiolm pack "$out/annotated" --kb "$out/kb" --tokenizer "$out/sample/tokenizer" --out "$out/shards" \
  --max-length 128 --heldout 0.1 --workers 2
kebiolm verify "$out/shards"
kebiolm shards show "$out/shards" --n 1
step "5/8 entity vectors: TransE"
# 1,600 triples are one batch of the default size: smaller batches and more passes instead.
kebiolm transe --kb "$out/kb" --shards "$out/shards" --out "$out/transe.safetensors" --batch-size 128 --epochs 200
step "6/8 pretraining: DeepSpeed ZeRO-2, 2 processes"
deepspeed --quiet --num_gpus 2 --module kebiolm.training.pretrain launch/configs/pretrain/quickstart.yaml \
  "shards=$out/shards" "output=$out/run" "entities.init_from=$out/transe.safetensors" \
  "tracking.tracking_uri=sqlite:///$out/mlflow.db"
step "7/8 export"
kebiolm export "$out/run" "$out/model"
step "8/8 use it"
kebiolm link "$out/model" "Patients treated with glycerin show reduced inflammation after 2 hours." --html "$out/link.html"

printf '\n== Done\n'
kebiolm track show "$out/run"
cat <<EOT

In your shell first:  source .venv/bin/activate
model         $out/model        kebiolm link $out/model "your text"
shards        $out/shards       kebiolm shards show $out/shards
linked page   $out/link.html
annotation    $out/annotated/report.html

It is a toy: a few hundred made-up abstracts. Words that it never saw are often mistaken for mentions.
EOT
