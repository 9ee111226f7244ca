"""Packs: photos in tar shards with an index, on a disk or in an object store, read by row.

Comes in: bytes and fingerprints of photos, or an address of a pack. Goes out: the same bytes, by row.
Must not know: how photos are decoded, split or shown. Nothing that a pack holds is ever executed.
"""
