"""UMLS release files -> one knowledge base folder."""
