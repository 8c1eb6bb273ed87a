"""Seeds of rows: of one to generate that does not bring its own, and of one that is trained on.

They depend on the run's seed and the row's id: never on a worker, an order or a clock, so the
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


def sample_seed(run_seed: int, visit: int, sample_id: str) -> int:
    """Seed of all that is drawn when a training run meets a sample, in ``[0, 2**63)``.

    Caption, dropout, crop, posterior, noise level and noise come from it and from nothing else, so
    they are the same on whatever rank and after however many restarts.

    Args:
        run_seed: any integer.
        visit: how often the run met the sample before (``GlobalBatch.visit``), or the epoch where
            every sample is met once in each; any integer.
        sample_id: column ``id`` of the samples dataset.
    """
    message = b"%d\0%d\0" % (run_seed, visit) + sample_id.encode("utf-8", errors="surrogatepass")
    digest = hashlib.blake2b(message, digest_size=8, person=b"sample").digest()
    return int.from_bytes(digest, "big") >> 1
