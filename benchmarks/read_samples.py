"""Reading finished samples as same-shape batches, beside webdataset and mosaicml-streaming."""

import argparse
import contextlib
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.harness import Target, progress, spread, write_results
from benchmarks.prepare_pictures import photograph
from sdxl_core.contract.samples import RawSample, Sample, staged_table
from sdxl_core.data.sample_maker import PictureOptions, make_samples
from sdxl_core.storage.parts import PartRecord, commit_part
from sdxl_core.storage.sample_parts import SampleFormat, write_sample_part
from sdxl_core.storage.stores import open_store
from tests.servers import S3Server, seaweed_s3

BUCKETS = ((1024, 1024), (832, 1216), (1216, 832), (896, 1152))
OURS, WEBDATASET, MOSAICML = "ours", "webdataset", "mosaicml"
S3_BUCKET = "samples"
PICTURES_PER_BUCKET = 4

_WHAT = """
{num_rows} samples as `sdxl prepare` makes them (JPEG, quality 95, 4:4:4) in {num_buckets} of the
paper's buckets, read once in full as batches of {batch_size} pictures of one shape, uint8 in the
memory of the process that would train, with their captions; two workers decode on every side, and
each pass is a process of its own. The sides have the same JPEG bytes:

- *ours*: parquet as `--format parquet` writes it; `iter_batches` with two threads.
- *webdataset*: tars as `--format webdataset` writes them; its pipeline and its loader with two
  worker processes, and a stage that collects pictures of equal shape. From S3 over its own curl
  reader, with signed URLs.
- *mosaicml*: MDS in one folder for each bucket, a stream for each, `batching_method="per_stream"`,
  torch's loader with two worker processes. From S3 with an empty cache. {mosaicml}

Rates are from the first batch on; `first batch` is what comes before, from the opening of the
dataset, imports apart. S3 is SeaweedFS on loopback, which runs on the same cores. Files are read
from a warm page cache.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures; ``--rows 128 --rounds 1 --places local`` tries the script."""
    parser = argparse.ArgumentParser(prog="benchmarks read_samples", description=__doc__)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--places", nargs="+", default=["local", "s3"], choices=["local", "s3"])
    parser.add_argument(
        "--mosaicml-python",
        default=None,
        help="a python that has mosaicml-streaming; without it that side is left out",
    )
    options = parser.parse_args(arguments)
    sides = [OURS, WEBDATASET] + ([MOSAICML] if options.mosaicml_python else [])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_datasets(folder, options)
        found: dict[str, dict[str, list[dict[str, Any]]]] = {}
        with _server(options.places) as server:
            for place in options.places:
                if place == "s3":
                    assert server is not None
                    _upload(folder, server)
                found[place] = _rounds(folder, sides, options, server if place == "s3" else None)
    _report(found, sides, options)


def write_datasets(folder: Path, options: argparse.Namespace) -> None:
    """The same samples as parquet, as tars and, if it can be had, as MDS."""
    samples = [_sample(number) for number in range(len(BUCKETS) * PICTURES_PER_BUCKET)]
    rows_per_part = 512
    formats: dict[str, SampleFormat] = {OURS: "parquet", WEBDATASET: "webdataset"}
    for first in range(0, options.rows, rows_per_part):
        rows = range(first, min(options.rows, first + rows_per_part))
        table = staged_table(
            [samples[row % len(samples)] for row in rows], source_slice=0
        ).drop_columns(["phash"])
        heights = table["target_height"].to_pylist()
        widths = table["target_width"].to_pylist()
        sizes = list(zip(heights, widths, strict=True))
        by_bucket = [
            (bucket, table.take([n for n, size in enumerate(sizes) if size == bucket]))
            for bucket in BUCKETS
        ]
        for name, output_format in formats.items():
            store = open_store(folder / name)
            part = first // rows_per_part
            files = write_sample_part(store, part, by_bucket, output_format=output_format)
            record = PartRecord(
                part=part,
                num_rows=len(rows),
                num_by_status={"sample": len(rows)},
                num_by_reason={},
                files=tuple(files),
            )
            commit_part(store, record)
    if options.mosaicml_python:
        tars = {
            str(folder / MOSAICML / bucket.name): sorted(map(str, bucket.glob("*.tar")))
            for bucket in sorted((folder / WEBDATASET).glob("bucket=*"))
        }
        _run("write_mds", {"tars": tars}, options.mosaicml_python, {})


def _sample(number: int) -> Sample:
    height, width = BUCKETS[number % len(BUCKETS)]
    buffer = io.BytesIO()
    Image.fromarray(photograph(height, width, seed=number)).save(buffer, "JPEG", quality=92)
    raw = RawSample(
        key=f"photograph-{number}", row_index=number, source="made", image=buffer.getvalue(),
        captions=(f"a photograph, the {number}th of them",),
    )  # fmt: skip
    made = make_samples(raw, PictureOptions())
    assert isinstance(made, list), made
    return made[0]


@contextlib.contextmanager
def _server(places: Sequence[str]) -> Iterator[S3Server | None]:
    if "s3" not in places:
        yield None
        return
    with seaweed_s3() as server:
        server.make_bucket(S3_BUCKET)
        yield server


def _upload(folder: Path, server: S3Server) -> None:
    os.environ.update(server.env)
    for name in (OURS, WEBDATASET, MOSAICML):
        store = open_store(f"s3://{S3_BUCKET}/{name}")
        for path in sorted((folder / name).rglob("*")):
            if path.is_file():
                store.upload(path, path.relative_to(folder / name).as_posix())


def _rounds(
    folder: Path, sides: Sequence[str], options: argparse.Namespace, server: S3Server | None
) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for index in range(options.rounds):
        for side in sides if index % 2 == 0 else reversed(sides):
            given = _arguments(side, folder, server)
            given |= {"batch_size": options.batch_size, "num_workers": options.workers}
            python = options.mosaicml_python if side == MOSAICML else sys.executable
            env = {} if server is None else {**server.env, "S3_ENDPOINT_URL": server.endpoint}
            found[side].append(json.loads(_run(side, given, python, env)))
            progress(f"round {index + 1} {side}: {found[side][-1]}")
    counts = {(one["num_samples"], one["mean"]) for some in found.values() for one in some}
    assert {num for num, _ in counts} == {options.rows}, counts
    means = [mean for _, mean in counts]
    assert max(means) - min(means) < 0.05, "the sides do not deliver the same pictures"
    return found


def _arguments(side: str, folder: Path, server: S3Server | None) -> dict[str, Any]:
    if side == OURS:
        return {"url": str(folder / OURS) if server is None else f"s3://{S3_BUCKET}/{OURS}"}
    if side == WEBDATASET:
        tars = sorted(path.as_posix() for path in (folder / WEBDATASET).rglob("*.tar"))
        if server is None:
            return {"urls": tars}
        keys = [Path(tar).relative_to(folder).as_posix() for tar in tars]
        return {"urls": [_signed(server, key) for key in keys]}
    buckets = sorted((folder / MOSAICML).iterdir())
    if server is None:
        return {"folders": list(map(str, buckets)), "remote": None}
    cache = folder / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    return {
        "folders": [str(cache / bucket.name) for bucket in buckets],
        "remote": [f"s3://{S3_BUCKET}/{MOSAICML}/{bucket.name}" for bucket in buckets],
    }


def _signed(server: S3Server, key: str) -> str:
    """A URL that needs no credentials for an hour."""
    import botocore.session
    from botocore.config import Config

    client = botocore.session.Session().create_client(
        "s3",
        endpoint_url=server.endpoint,
        region_name=server.env["AWS_DEFAULT_REGION"],
        aws_access_key_id=server.env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=server.env["AWS_SECRET_ACCESS_KEY"],
        config=Config(signature_version="s3v4"),
    )
    url: str = client.generate_presigned_url(
        "get_object", Params={"Bucket": S3_BUCKET, "Key": key}, ExpiresIn=3600
    )
    return url


def _run(side: str, given: Mapping[str, Any], python: str, env: Mapping[str, str]) -> str:
    """The last line of a side's process."""
    script = Path(__file__).with_name("read_sides.py")
    done = subprocess.run(
        [python, str(script), side, json.dumps(given)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": _python_path(side), **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=3000,
    )
    if done.returncode:
        raise RuntimeError(f"{side}: exit code {done.returncode}\n{done.stderr[-4000:]}")
    return (done.stdout.strip().splitlines() or [""])[-1]


def _python_path(side: str) -> str:
    """Ours needs this repository; the others bring what they need."""
    there = os.environ.get("PYTHONPATH", "")
    root = str(Path(__file__).parent.parent)
    return os.pathsep.join(filter(None, [root, there])) if side == OURS else there


def _report(
    found: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]],
    sides: Sequence[str],
    options: argparse.Namespace,
) -> None:
    rates: dict[str, dict[str, list[float]]] = {
        place: {side: [one["samples_per_s"] for one in some] for side, some in by_side.items()}
        for place, by_side in found.items()
    }
    rows = [
        {
            "place": place,
            "side": side,
            **spread(rates[place][side]),
            "first batch, s": statistics.median(one["first_batch_s"] for one in some),
            "samples per CPU second": statistics.median(one["samples_per_cpu_s"] for one in some),
        }
        for place, by_side in found.items()
        for side, some in by_side.items()
    ]
    targets = [
        Target(
            name=f"{place}: samples/s over {side}",
            found=statistics.median(
                mine / other
                for mine, other in zip(rates[place][OURS], rates[place][side], strict=True)
            ),
            wanted=1.0,
        )
        for place in found
        for side in sides
        if side != OURS
    ]
    missing = "" if options.mosaicml_python else "Not measured: no --mosaicml-python was given."
    write_results(
        "read_samples",
        what=_WHAT.format(
            num_rows=options.rows,
            num_buckets=len(BUCKETS),
            batch_size=options.batch_size,
            mosaicml=missing,
        ),
        values={"rows": options.rows, "batch_size": options.batch_size, "passes": found},
        tables={"samples/s": rows},
        targets=targets,
        is_trial=options.rows < 1024 or options.rounds < 3,
    )


if __name__ == "__main__":
    main()
