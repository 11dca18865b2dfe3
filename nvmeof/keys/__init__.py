"""Encryption at rest: the cipher of records, where the key-encryption key comes from, the table of wrapped keys."""
