"""Volumes: where the blocks of a namespace live."""
