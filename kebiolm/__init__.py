"""KeBioLM: a biomedical BERT that reads an entity memory built from UMLS (Yuan et al., BioNLP 2021)."""

__version__ = "0.1.0"
__all__ = ["KeBioLM", "__version__"]


def __getattr__(name: str):
    """Import `KeBioLM` on first use, so that a preprocessing node never loads torch."""
    if name == "KeBioLM":
        from kebiolm.linking.api import KeBioLM

        return KeBioLM
    raise AttributeError(f"module 'kebiolm' has no attribute {name!r}")
