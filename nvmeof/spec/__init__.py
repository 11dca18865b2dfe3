"""Numbers and layouts of the NVMe specifications. No behaviour."""
