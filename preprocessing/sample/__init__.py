"""A made-up mini UMLS and mini PubMed with known answers."""
