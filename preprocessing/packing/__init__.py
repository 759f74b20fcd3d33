"""Annotated documents -> packed training shards: align, cut into segments, pack, write."""
