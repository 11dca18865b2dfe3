"""The NVMe/TCP target: listeners, subsystems, controllers and the commands they execute."""
