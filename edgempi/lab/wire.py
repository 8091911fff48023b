"""The program that measures raw links: `python -m edgempi.lab.wire ADDRESS PEER SECONDS`, on every device at once.

Each sends to its peer over a plain TCP socket for some seconds, and receives from whoever has it as a peer; it prints
the rate at which bytes arrived, in bit/s of payload.
"""

from __future__ import annotations

import socket
import sys
import threading
import time

PORT = 7701
BLOCK_BYTES = 256 * 2**10
START_S = 20.0


def main() -> None:
    """Send in one thread, receive in another."""
    address, peer, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    listener = socket.create_server((address, PORT))
    listener.settimeout(START_S)
    sender = threading.Thread(target=_send, args=(peer, seconds))
    sender.start()
    connection, _ = listener.accept()
    print(_receive(connection), flush=True)
    sender.join()


def _send(peer: str, seconds: float) -> None:
    block = bytes(BLOCK_BYTES)
    with _connect(peer) as connection:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            connection.sendall(block)


def _connect(peer: str) -> socket.socket:
    end = time.monotonic() + START_S
    while True:
        try:
            return socket.create_connection((peer, PORT), timeout=START_S)
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def _receive(connection: socket.socket) -> float:
    # The clock starts with the first block: what came before filled the link, and had its token bucket full.
    buffer = bytearray(BLOCK_BYTES)
    connection.recv_into(buffer)
    received, start, last = 0, time.perf_counter(), 0.0
    while count := connection.recv_into(buffer):
        received, last = received + count, time.perf_counter()
    return 8 * received / (last - start)


if __name__ == "__main__":
    main()
