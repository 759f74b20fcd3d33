"""Export of real DeepSpeed checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from kebiolm.data.tokenizer import load_tokenizer
from kebiolm.errors import UserError
from kebiolm.export.consolidate import consolidate
from kebiolm.export.to_hf import ENTITY_TABLE, check_reload, export_checkpoint, load_weights
from kebiolm.linking import KeBioLM
from kebiolm.model import KeBioLMConfig, KeBioLMForPreTraining
from kebiolm.training.checkpoint import MODEL_FOLDER, find_checkpoint
from tests.export.zero_checkpoints import CASES, EXPECTED, STEP


@pytest.fixture(scope="module")
def checkpoints(zero_checkpoints: Path) -> Path:
    return zero_checkpoints


@pytest.mark.parametrize("case", CASES)
def test_every_zero_stage_gives_the_trained_weights(checkpoints: Path, case: str, tmp_path: Path) -> None:
    out = export_checkpoint(checkpoints / case, tmp_path / "model")
    expected = load_file(checkpoints / case / EXPECTED)
    model = KeBioLMForPreTraining.from_pretrained(out)
    found = model.state_dict()
    table = expected[ENTITY_TABLE]
    assert table.shape == (13, 8) and not table[:, 7].any() and table[3:, :7].all()
    expected[ENTITY_TABLE] = table[:, :7]
    for name, weight in expected.items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], weight, rtol=0, atol=0, msg=name)
    untouched = {"bert.embeddings.position_ids", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    assert found.keys() - expected.keys() <= untouched
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert model.config.freeze_entity_embeddings == CASES[case][2]


def test_folder_has_everything_and_links(checkpoints: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = export_checkpoint(checkpoints / "stage2-frozen", tmp_path / "model")
    printed, errors = capfd.readouterr()
    assert f"(step {STEP})" in printed and len(printed.splitlines()) == 3
    assert errors == ""
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "config.json",
        "entity_vocab.tsv",
        "model.safetensors",
        "vocab.txt",
    ]
    assert out.joinpath("model.safetensors").stat().st_mode & 0o044 == 0o044
    load_tokenizer(out)
    assert KeBioLM.from_pretrained(out, device="cpu").encode(["severe pain"]).any()


def test_model_card_is_what_the_hub_reads(checkpoints: Path, tmp_path: Path) -> None:
    out = export_checkpoint(checkpoints / "stage1", tmp_path / "small model")
    card = ModelCard.load(out / "README.md")
    assert card.data.license == "other" and card.data.license_name == "umls-metathesaurus-license"
    (result,) = card.data.eval_results
    assert (result.metric_name, result.metric_value) == ("linking accuracy at 1", 0.25)
    assert "| train | heldout |" in card.text and "2,000" in card.text
    assert "KeBioLM.from_pretrained" in card.text
    assert "| started from | bert |" in card.text and "/secret" not in card.content


def test_export_twice_gives_equal_bytes(checkpoints: Path, tmp_path: Path) -> None:
    first, second = (export_checkpoint(checkpoints / "stage1", tmp_path / name / "model") for name in ("a", "b"))
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes(), file.name


def test_existing_folder_stays_unless_told(checkpoints: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    out.mkdir()
    (out / "mine").touch()
    with pytest.raises(UserError, match="--overwrite"):
        export_checkpoint(checkpoints / "stage1", out)
    assert [path.name for path in out.iterdir()] == ["mine"]
    with pytest.raises(UserError, match="did not make"):
        export_checkpoint(checkpoints / "stage1", out, overwrite=True)
    assert [path.name for path in out.iterdir()] == ["mine"]
    (out / "mine").unlink()
    export_checkpoint(checkpoints / "stage1", out, overwrite=True)
    (out / "README.md").write_text("an older card")
    export_checkpoint(checkpoints / "stage1", out, overwrite=True)
    assert (out / "README.md").read_text() != "an older card"


def test_a_checkpoint_is_never_replaced_by_its_export(checkpoints: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(checkpoints / "stage1", tmp_path / "run"))
    checkpoint = find_checkpoint(run)
    files = sorted(run.rglob("*"))
    for out in (run, checkpoint, checkpoint / MODEL_FOLDER):
        with pytest.raises(UserError, match="the input"):
            export_checkpoint(run, out, overwrite=True)
    assert sorted(run.rglob("*")) == files


def test_a_lost_shard_is_named(checkpoints: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(checkpoints / "stage2-frozen", tmp_path / "run"))
    shard = next(run.rglob("*rank_1*optim_states.pt"))
    shard.unlink()
    with pytest.raises(UserError, match=shard.name):
        export_checkpoint(run, tmp_path / "model")
    with pytest.raises(UserError, match="do not fit together"):
        consolidate(next(run.glob("checkpoints/step-*")))
    assert not (tmp_path / "model").exists()


def test_weights_that_do_not_fit_the_config(checkpoints: Path) -> None:
    checkpoint = find_checkpoint(checkpoints / "stage1")
    state = consolidate(checkpoint)
    fields = json.loads((checkpoint / "model" / "config.json").read_text())
    with pytest.raises(UserError, match=r"entity_linker.*\(13, 8\) instead of \(13, 9\)"):
        load_weights(KeBioLMConfig(**fields | {"entity_row_size": 9}), state, where="here")
    with pytest.raises(UserError, match=r"no bert\.recontext_encoder"):
        load_weights(KeBioLMConfig(**fields | {"num_hidden_layers": 4}), state, where="here")
    with pytest.raises(UserError, match=r"unknown bert\.recontext_encoder"):
        load_weights(KeBioLMConfig(**fields | {"num_hidden_layers": 2}), state, where="here")


def test_tied_weights_may_come_under_one_name(checkpoints: Path) -> None:
    checkpoint = find_checkpoint(checkpoints / "stage1")
    config, state = KeBioLMConfig.from_pretrained(checkpoint / "model"), consolidate(checkpoint)
    del state["cls.predictions.decoder.weight"]
    model = load_weights(config, state, where="here")
    assert torch.equal(model.cls.predictions.decoder.weight, state["bert.embeddings.word_embeddings.weight"])


def test_reload_check_sees_a_changed_weight(checkpoints: Path, tmp_path: Path) -> None:
    out = export_checkpoint(checkpoints / "stage1", tmp_path / "model")
    state = KeBioLMForPreTraining.from_pretrained(out).state_dict()
    check_reload(out, state)
    weights = load_file(out / "model.safetensors")
    weights["bert.mention_detector.bias"][0] += 1
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"bert.mention_detector.bias differs"):
        check_reload(out, state)


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        export_checkpoint(tmp_path / "absent", tmp_path / "model")
    with pytest.raises(UserError, match="no complete checkpoint"):
        export_checkpoint(tmp_path, tmp_path / "model")
