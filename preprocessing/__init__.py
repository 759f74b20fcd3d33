"""From UMLS files and abstracts to packed training shards."""
