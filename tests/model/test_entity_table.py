"""The entity table: rows stored wider than an entity, and a search index in its place."""

from __future__ import annotations

import pytest
import torch

from kebiolm.errors import UserError
from kebiolm.model import KeBioLMConfig, KeBioLMForPreTraining

TABLE = "bert.entity_linker.entity_embeddings.weight"


@pytest.fixture
def padded(make_model):
    """The weights of `model`, in a table with four more columns."""
    plain, model = make_model(), make_model(entity_row_size=12)
    state = plain.state_dict()
    state[TABLE] = torch.nn.functional.pad(state[TABLE], (0, 4))
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("backend", ["cpu", "tiled", "reference"])
def test_padding_changes_nothing_and_stays_zero(make_model, padded, packed_batch, monkeypatch, backend):
    monkeypatch.setenv("KEBIOLM_KNN_BACKEND", backend)
    plain = make_model()
    for model in (plain, padded):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            output = model(**packed_batch)
            output.loss.backward()
            optimizer.step()
        model.last = output
    torch.testing.assert_close(padded.last.loss, plain.last.loss, atol=1e-5, rtol=0)
    assert padded.last.mention_vectors.shape == plain.last.mention_vectors.shape
    table = padded.state_dict()[TABLE]
    assert table.shape == (43, 12) and not table[:, 8:].any()
    torch.testing.assert_close(table[:, :8], plain.state_dict()[TABLE], atol=1e-4, rtol=0)


def test_a_fresh_padded_table_is_zero_behind_its_vectors(make_model, tmp_path):
    model = make_model(entity_row_size=12)
    table = model.state_dict()[TABLE]
    assert table[:, :8].all() and not table[:, 8:].any()
    model.save_pretrained(tmp_path)
    assert torch.equal(KeBioLMForPreTraining.from_pretrained(tmp_path).state_dict()[TABLE], table)


def test_a_row_has_room_for_its_vector():
    for size in (99, 104.5, "104", True):
        with pytest.raises(UserError, match=f"entity_row_size: got {size!r}; expected at least entity_size = 100, a"):
            KeBioLMConfig(entity_row_size=size)


class Exact:
    """An index that finds what the operator finds, but only `found` of it."""

    def __init__(self, table, first_row, found):
        self.table, self.first_row, self.found = table, first_row, found

    def search(self, vectors, k):
        values, rows = (vectors @ self.table[self.first_row :].T).topk(k, dim=1)
        rows += self.first_row
        values[:, self.found :], rows[:, self.found :] = 0.0, -1
        return values, rows


@torch.no_grad()
def test_an_index_takes_the_place_of_the_search(model, packed_batch):
    inputs = {name: packed_batch[name] for name in ("input_ids", "document_index", "mention_spans")}
    exact = model.bert(**inputs)
    memory = model.bert.entity_linker.entity_embeddings
    memory.index = Exact(memory.vectors, memory.num_hidden_rows, found=5)
    found = model.bert(**inputs)
    torch.testing.assert_close(found.last_hidden_state, exact.last_hidden_state)
    assert torch.equal(found.entities.topk_rows, exact.entities.topk_rows)
    torch.testing.assert_close(found.entities.topk_weights, exact.entities.topk_weights)
    assert found.entities.lse.isnan().all()
    # Fewer neighbours share the weight among them; one that finds nothing adds nothing.
    memory.index = Exact(memory.vectors, memory.num_hidden_rows, found=2)
    fewer = model.bert(**inputs).entities
    torch.testing.assert_close(fewer.topk_weights[:, :2].sum(dim=1), torch.ones(len(fewer.topk_weights)))
    assert not fewer.topk_weights[:, 2:].any()
    memory.index = Exact(memory.vectors, memory.num_hidden_rows, found=0)
    assert not model.bert(**inputs).entities.entity_vectors.any()
    with pytest.raises(ValueError, match="gold_rows: got rows beside an index"):
        model(**packed_batch)
