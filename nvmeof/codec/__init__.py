"""Bytes in, bytes out: hashes and checksums shared by the engine and the checkpoint store."""
