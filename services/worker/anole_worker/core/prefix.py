"""Names for the content of KV blocks: equal exactly where keys and values are interchangeable."""

from array import array
from collections.abc import Sequence as Listing
from hashlib import blake2b

from anole_worker.core.adapter import Adapter

Digest = bytes
"""Stands for an adapter's content and all tokens up to a block's end.

It is cryptographic, so that nobody can make tokens that pass for another's: a block that is found
by it would give one user what another one's tokens made. Its first _ROOT_BYTES are the adapter's.
"""

_ROOT_BYTES = 8
_CHAIN_BYTES = 16


def root(adapter: Adapter | None) -> Digest:
    """The digest of no tokens at all, with an adapter or without."""
    own = "" if adapter is None else f"{adapter.adapter_id}\0{adapter.generation}"
    return blake2b(own.encode(), digest_size=_ROOT_BYTES + _CHAIN_BYTES).digest()


def extend(parent: Digest, token_ids: Listing[int]) -> Digest:
    """The digest of the block that holds these tokens, behind its parent's."""
    content = parent + array("q", token_ids).tobytes()
    return parent[:_ROOT_BYTES] + blake2b(content, digest_size=_CHAIN_BYTES).digest()


def family(digest: Digest) -> bytes:
    """What the digests of all blocks that were computed with the same adapter have in common."""
    return digest[:_ROOT_BYTES]
