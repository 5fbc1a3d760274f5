"""A large file that clients of the Hub keep in a local folder by the Xet protocol, as a server finds it."""

import struct
from pathlib import Path


class XetFile(bytes):
    """A file that the clients keep in a folder by the Xet protocol: to the server a pointer, as Git has it.

    Attributes:
        sha256: of its content.
        size: in bytes.
        xet_hash: its name in that folder.
    """

    sha256: str
    size: int
    xet_hash: str

    @classmethod
    def find(cls, folder: Path, sha256: str, size: int) -> "XetFile | None":
        """The file of this sha256, if it was uploaded into the folder."""
        for shard in folder.rglob("shards/*.mdb"):
            xet_hash = _files_in_shard(shard.read_bytes()).get(sha256)
            if xet_hash is not None:
                found = cls(f"oid sha256:{sha256}\nsize {size}\n".encode())
                found.sha256, found.size, found.xet_hash = sha256, size, xet_hash
                return found
        return None


def _files_in_shard(shard: bytes) -> dict[str, str]:
    """Xet hashes by sha256: a shard lists files in records of 48 bytes, of which the first says how many follow."""
    at, found = 48, {}
    while (name := shard[at : at + 32]) != b"\xff" * 32:
        flags, segments = struct.unpack_from("<II", shard, at + 32)
        at += 48 * (1 + segments * (2 if flags >> 31 else 1))  # segments, and what verifies them
        if flags >> 30 & 1:
            found[_as_text(shard[at : at + 32])] = _as_text(name)
            at += 48
    return found


def _as_text(xet_hash: bytes) -> str:
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", xet_hash))
