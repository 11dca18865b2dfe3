"""NVMe/TCP against real Linux kernels, booted in QEMU without privileges."""
