"""TransE start vectors for the entity table, learned from the knowledge base's triples (paper, section 4.1)."""
