"""The hashes are the published ones."""

from __future__ import annotations

import threading
import time

from nvmeof.codec.hashes import blake3_256, sha256


def test_blake3_official_vectors() -> None:
    """https://github.com/BLAKE3-team/BLAKE3/blob/master/test_vectors/test_vectors.json: input byte i is i % 251."""
    vectors = {
        0: "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
        1: "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213",
        1023: "10108970eeda3eb932baac1428c7a2163b0e924c9a9e25b35bba72b28f70bd11",
        102400: "bc3e3d41a1146b069abffad3c0d44860cf664390afce4d9661f7902e7943e085",
    }
    for length, digest in vectors.items():
        data = bytes(i % 251 for i in range(length))
        assert blake3_256(data).hex() == digest, length
        assert blake3_256(memoryview(bytearray(data))).hex() == digest


def test_sha256_vector() -> None:
    """FIPS 180-4, "abc"."""
    assert sha256(b"abc").hex() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_hashing_a_chunk_lets_other_threads_run() -> None:
    data = bytes(64 << 20)
    ticks = 0
    done = threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not done.is_set():
            ticks += 1
            time.sleep(0.0001)

    thread = threading.Thread(target=tick)
    thread.start()
    before = ticks
    for _ in range(4):
        blake3_256(data)
    after = ticks
    done.set()
    thread.join()
    assert after > before + 2
