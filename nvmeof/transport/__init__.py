"""Sockets: asyncio protocols that feed a queue pair, and the buffers they share."""
