"""The sans-I/O NVMe/TCP queue pair: bytes and time in, buffers out. Both roles."""
