"""The seed of a row that does not bring one.

It depends on the run's seed and the row's id alone: never on a worker, an order or a clock, so the
same row draws the same noise wherever and whenever it runs.
"""

import hashlib

MAX_SEED = 2**63 - 1


def row_seed(run_seed: int, row_id: str) -> int:
    """Seed of row ``row_id`` in a run seeded with ``run_seed``, in ``[0, 2**63)``.

    ``run_seed`` may be any integer. ``torch.Generator.manual_seed`` accepts every value returned.
    The 63 bits are those of BLAKE2b over the decimal run seed, a zero byte and the UTF-8 id.
    Changing this function changes every picture whose row has no seed of its own.
    """
    message = b"%d\0" % run_seed + row_id.encode("utf-8", errors="surrogatepass")
    digest = hashlib.blake2b(message, digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
