"""Settings of a KeBioLM model, saved as config.json beside its weights."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from kebiolm.errors import UserError

SEMANTICS = ("paper", "released")


class KeBioLMConfig(PretrainedConfig):
    """Sizes and switches of a KeBioLM model; the defaults are those of the paper's base model.

    `semantics` chooses between two readings of the same weights. "paper" follows the paper's equations, and the
    output for a row does not depend on its batch. "released" repeats what the authors' published code computes
    (see `kebiolm.model.released`); a config.json that has `num_context_layers` but no `semantics` was written by
    that code and loads as "released".

    Raises:
        UserError: a value is out of its range.
    """

    model_type = "kebiolm"

    def __init__(
        self,
        *,
        vocab_size: int = 28895,  # pieces of the released vocabulary (PubMedBERT's, with its unused tail)
        hidden_size: int = 768,  # base size (section 4.1)
        num_hidden_layers: int = 12,  # text-only and fusion layers together (section 4.5)
        num_context_layers: int = 8,  # text-only layers, Eq. 1; the rest are fusion layers, Eq. 5 (section 4.1)
        num_attention_heads: int = 12,  # base size
        intermediate_size: int = 3072,  # base size
        hidden_act: str = "gelu",  # as PubMedBERT
        hidden_dropout_prob: float = 0.1,  # not given in the paper; as PubMedBERT
        attention_probs_dropout_prob: float = 0.1,  # not given in the paper; as PubMedBERT
        max_position_embeddings: int = 512,  # longest sequence (section 4.1)
        type_vocab_size: int = 2,  # as PubMedBERT; only type 0 is used
        initializer_range: float = 0.02,  # standard deviation of fresh weights; as PubMedBERT
        layer_norm_eps: float = 1e-12,  # as PubMedBERT
        pad_token_id: int | None = 0,  # [PAD] of the released vocabulary
        num_entities: int = 477_039,  # rows of the entity table, special rows included (477K CUIs, section 4.1)
        num_special_entities: int = 3,  # first rows: [PAD_ENT], [UNK_ENT], [NIL_ENT]; never linked in "paper"
        entity_size: int = 100,  # length of an entity embedding, as TransE's (section 4.1)
        entity_row_size: int | None = None,  # columns of a stored row, those behind entity_size 0; None: no more
        max_mentions: int = 50,  # detected mentions kept for each row, the rest are cut (section 4.1)
        max_candidate_entities: int = 100,  # k of Eq. 3 (section 4.1)
        semantics: str = "paper",  # "paper" or "released"
        fusion_layer_norm: bool = True,  # LayerNorm after the sum of Eq. 4, as the release has; False: Eq. 4 literally
        freeze_entity_embeddings: bool = False,  # True: the "+frz" ablation (section 4.5)
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_context_layers = num_context_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.max_position_embeddings = max_position_embeddings
        self.type_vocab_size = type_vocab_size
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        self.num_entities = num_entities
        self.num_special_entities = num_special_entities
        self.entity_size = entity_size
        self.entity_row_size = entity_row_size
        self.max_mentions = max_mentions
        self.max_candidate_entities = max_candidate_entities
        self.semantics = semantics
        self.fusion_layer_norm = fusion_layer_norm
        self.freeze_entity_embeddings = freeze_entity_embeddings
        kwargs.setdefault("tie_word_embeddings", True)
        self.pad_token_id = pad_token_id
        super().__init__(pad_token_id=pad_token_id, **kwargs)
        # After super().__init__, which may reset pad_token_id in some versions of transformers.
        self.pad_token_id = pad_token_id
        self._check()

    @property
    def fuses_entities(self) -> bool:
        """Whether entities are added to tokens (Eq. 4).

        Without fusion layers the paper takes the text-only states as they are (section 4.5, setting iii); the
        released code still adds entities and normalises there.
        """
        return self.num_context_layers < self.num_hidden_layers or self.semantics == "released"

    @property
    def entity_columns(self) -> int:
        """Columns of the stored entity table."""
        return self.entity_size if self.entity_row_size is None else self.entity_row_size

    @property
    def num_hidden_entity_rows(self) -> int:
        """Number of leading table rows kept out of top-k and softmax: the special rows, none in the release."""
        return self.num_special_entities if self.semantics == "paper" else 0

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read config.json as `transformers` does, and name what the released code left unsaid."""
        config_dict, unused = super().get_config_dict(*args, **kwargs)
        return _complete_released(config_dict), unused

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Make a config from the content of a config.json; see the class for how `semantics` is chosen."""
        return super().from_dict(_complete_released(config_dict), **kwargs)

    def _check(self) -> None:
        def require(name: str, holds: bool, expected: str) -> None:
            if not holds:
                raise UserError(name, got=repr(getattr(self, name)), expected=expected, mend=f"change {name}")

        for name in ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size", "entity_size"):
            require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("max_position_embeddings", "type_vocab_size", "max_mentions", "max_candidate_entities"):
            require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            require(name, 0.0 <= getattr(self, name) < 1.0, "a probability in [0, 1)")
        layers, heads = self.num_hidden_layers, self.num_attention_heads
        require("num_hidden_layers", layers >= 0, "0 or more")
        require("num_context_layers", 0 <= self.num_context_layers <= layers, f"0 to num_hidden_layers = {layers}")
        require("hidden_size", self.hidden_size % heads == 0, f"a multiple of num_attention_heads = {heads}")
        require("num_special_entities", self.num_special_entities >= 0, "0 or more")
        require("num_entities", self.num_entities > self.num_special_entities, "more than num_special_entities")
        width, size = self.entity_columns, self.entity_size
        is_whole = isinstance(width, int) and not isinstance(width, bool)
        require(
            "entity_row_size", is_whole and width >= size, f"at least entity_size = {size}, a whole number, or none"
        )
        require("semantics", self.semantics in SEMANTICS, " or ".join(SEMANTICS))


def _complete_released(config_dict: dict[str, Any]) -> dict[str, Any]:
    """Add `semantics` and the right `model_type` to a config of the released code; other configs pass unchanged."""
    if "num_context_layers" not in config_dict or "semantics" in config_dict:
        return config_dict
    return {**config_dict, "model_type": KeBioLMConfig.model_type, "semantics": "released"}
