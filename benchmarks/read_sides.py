"""The sides of ``read_samples``, each in a process of its own: one pass over a dataset.

It runs by its path in any environment that has the side's library: ``sdxl_core`` for ours,
``webdataset``, or ``streaming`` (mosaicml-streaming), which may need another numpy than ours.
Prints one line of JSON: samples delivered, seconds, and the mean of all pixels, by which the sides
are seen to deliver the same pictures.
"""

import importlib
import io
import json
import resource
import sys
import tarfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    """Runs ``SIDE JSON``: the side's name and its arguments."""
    side, given = sys.argv[1], json.loads(sys.argv[2])
    if side == "write_mds":
        write_mds(**given)
        return
    sides = {"ours": ours, "webdataset": webdataset_side, "mosaicml": mosaicml}
    _import_libraries(side)
    started, cpu_started = time.perf_counter(), _cpu_s()
    first_s, num_samples, num_first, total, shapes = 0.0, 0, 0, 0.0, set()
    for batch in sides[side](**given):
        pixels_BHWC = np.asarray(batch)  # a loader may have made it torch's
        num_samples += len(pixels_BHWC)
        shapes.add(tuple(pixels_BHWC.shape[1:]))
        # Looking at every 16th row and column is enough to know the pictures.
        total += float(pixels_BHWC[:, ::16, ::16].mean()) * len(pixels_BHWC)
        if not first_s:
            first_s, num_first = time.perf_counter() - started, len(pixels_BHWC)
    seconds = time.perf_counter() - started
    found = {
        "num_samples": num_samples,
        "num_shapes": len(shapes),
        "mean": round(total / num_samples, 3),
        "first_batch_s": round(first_s, 3),
        "samples_per_s": round((num_samples - num_first) / (seconds - first_s), 2),
        "samples_per_cpu_s": round(num_samples / (_cpu_s() - cpu_started), 2),
    }
    print(json.dumps(found), flush=True)


def ours(url: str, batch_size: int, num_workers: int) -> Iterator[Any]:
    """Threads that decode."""
    from sdxl_core.storage.sample_batches import iter_batches
    from sdxl_core.storage.sample_reading import iter_units
    from sdxl_core.storage.stores import open_store

    store = open_store(url)
    batches = iter_batches(store, iter_units(store), batch_size=batch_size, num_threads=num_workers)
    for batch in batches:
        yield batch.pixels_BHWC


def webdataset_side(urls: list[str], batch_size: int, num_workers: int) -> Iterator[Any]:
    """Its pipeline in the workers of its loader, with a stage that collects equal shapes."""
    import webdataset as wds

    def same_shape(samples: Iterable[dict[str, Any]]) -> Iterator[tuple[Any, list[str]]]:
        waiting: dict[tuple[int, ...], list[dict[str, Any]]] = {}
        for sample in samples:
            some = waiting.setdefault(sample["jpg"].shape, [])
            some.append(sample)
            if len(some) == batch_size:
                yield np.stack([one["jpg"] for one in some]), [one["txt"] for one in some]
                some.clear()
        for some in filter(None, waiting.values()):
            yield np.stack([one["jpg"] for one in some]), [one["txt"] for one in some]

    pipeline = wds.DataPipeline(
        wds.SimpleShardList(urls),
        wds.split_by_worker,
        wds.tarfile_to_samples(),
        wds.decode("rgb8"),
        same_shape,
    )
    for pixels_BHWC, _ in wds.WebLoader(pipeline, batch_size=None, num_workers=num_workers):
        yield pixels_BHWC


def mosaicml(
    folders: list[str], remote: list[str] | None, batch_size: int, num_workers: int
) -> Iterator[Any]:
    """One stream for each bucket, batches of one stream, in torch's loader."""
    _import_streaming()
    from streaming.base import Stream, StreamingDataset
    from torch.utils.data import DataLoader

    streams = [
        Stream(local=folder, remote=None if remote is None else remote[number])
        for number, folder in enumerate(folders)
    ]
    dataset = StreamingDataset(
        streams=streams, batch_size=batch_size, batching_method="per_stream", shuffle=False
    )
    loader = DataLoader(
        dataset, batch_size=batch_size, num_workers=num_workers, collate_fn=_stacked
    )
    for pixels_BHWC, _ in loader:
        yield pixels_BHWC


def write_mds(tars: dict[str, list[str]]) -> None:
    """The pictures and captions of tars as MDS, a folder for each key of ``tars``."""
    _import_streaming()
    from streaming.base import MDSWriter

    for folder, paths in tars.items():
        columns = {"image": "bytes", "caption": "str"}
        with MDSWriter(out=folder, columns=columns, size_limit=1 << 26) as writer:
            for path in paths:
                writer_rows: dict[str, dict[str, Any]] = {}
                with tarfile.open(path) as tar:
                    for member in tar:
                        content = tar.extractfile(member)
                        assert content is not None
                        key, _, suffix = member.name.partition(".")
                        writer_rows.setdefault(key, {})[suffix] = content.read()
                for row in writer_rows.values():
                    writer.write({"image": row["jpg"], "caption": row["txt"].decode()})


def _stacked(samples: list[dict[str, Any]]) -> tuple[Any, list[str]]:
    from PIL import Image

    pictures = [Image.open(io.BytesIO(sample["image"])).convert("RGB") for sample in samples]
    return np.stack([np.asarray(one) for one in pictures]), [one["caption"] for one in samples]


def _import_libraries(side: str) -> None:
    """What a side's function imports, so that it takes no time within the pass."""
    if side == "ours":
        importlib.import_module("sdxl_core.storage.sample_batches")
    elif side == "webdataset":
        importlib.import_module("webdataset")
    else:
        _import_streaming()
        importlib.import_module("torch.utils.data")


def _import_streaming() -> None:
    """Its package imports torchvision, which may lack its operators beside a CPU build of torch."""
    sys.path.append(str(Path(__file__).parent.parent))
    from sdxl_core.nets.torchvision_ops import declare_missing_torchvision_ops

    declare_missing_torchvision_ops()
    import streaming  # noqa: F401


def _cpu_s() -> float:
    """Seconds of CPU of this process and of its workers that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    main()
