"""A tiny model whose weights are set by hand, so that mentions, concepts and weights are known."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from kebiolm.data.entity_vocab import FILE_NAME, EntityVocab
from kebiolm.data.tokenizer import load_tokenizer
from kebiolm.model import KeBioLMConfig, KeBioLMForPreTraining

ASPIRIN, HEADACHE, PAIN = "C0004057", "C0018681", "C0030193"
WINDOW = 14
"""Pieces of a window: the model's longest input without [CLS] and [SEP]."""
HIDDEN_SIZE, ENTITY_SIZE = 12, 4
# Each of these pieces has a dimension of the hidden state to itself; all other pieces share the last.
PIECES = ("asp", "##irin", "head", "##ache", "pain")
OTHER = len(PIECES)


def write_model_folder(folder: Path, tokenizer_folder: Path) -> None:
    """Write an exported folder that detects "aspirin", "headache" and "pain" and links each to its concept.

    Without text-only layers the mention detector sees each piece alone: B at "asp", "head", "pain", I at "##irin",
    "##ache", O elsewhere. A mention's vector is decided by its first piece.
    """
    shutil.copytree(tokenizer_folder, folder)
    tokenizer = load_tokenizer(folder)
    vocabulary = EntityVocab.build(
        {ASPIRIN: 5, HEADACHE: 3, PAIN: 2},
        names={ASPIRIN: "Aspirin", HEADACHE: "Headache <b>", PAIN: "Pain"},
        semantic_types={ASPIRIN: ("Organic Chemical", "Pharmacologic Substance"), HEADACHE: ("Sign & Symptom",)},
    )
    vocabulary.save(folder / FILE_NAME)
    config = KeBioLMConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN_SIZE,
        num_hidden_layers=1,
        num_context_layers=0,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=WINDOW + 2,
        num_entities=len(vocabulary),
        entity_size=ENTITY_SIZE,
        max_mentions=2,
        max_candidate_entities=2,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    model = KeBioLMForPreTraining(config)
    rows = [vocabulary.row(cui) for cui in (ASPIRIN, HEADACHE, PAIN)]
    _set_weights(model, [tokenizer.convert_tokens_to_ids(piece) for piece in PIECES], rows)
    model.save_pretrained(folder)


@torch.no_grad()
def _set_weights(model: KeBioLMForPreTraining, piece_ids: list[int], rows: list[int]) -> None:
    bert = model.bert
    embeddings = bert.embeddings
    for table in (embeddings.position_embeddings, embeddings.token_type_embeddings, embeddings.word_embeddings):
        table.weight.zero_()
    embeddings.word_embeddings.weight[:, OTHER] = 1.0
    for dimension, piece in enumerate(piece_ids):
        embeddings.word_embeddings.weight[piece] = torch.eye(HIDDEN_SIZE)[dimension]
    detector = bert.mention_detector
    detector.bias.zero_()
    detector.weight.zero_()
    detector.weight[0, OTHER] = 1.0
    detector.weight[1, [0, 2, 4]] = 1.0
    detector.weight[2, [1, 3]] = 1.0
    projection, table = bert.entity_linker.mention_to_entity_projection, bert.entity_linker.entity_embeddings.weight
    projection.bias.zero_()
    projection.weight.zero_()
    table.zero_()
    for entity, (row, dimension) in enumerate(zip(rows, (0, 2, 4), strict=True)):
        projection.weight[entity, dimension] = 1.0
        table[row, entity] = 1.0
    # The special rows would win every mention if they were not kept out.
    table[:3] = 100.0
