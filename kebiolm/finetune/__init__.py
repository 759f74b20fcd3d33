"""Fine-tuning on entity recognition and relation extraction (paper sections 4.2 and 4.3)."""
