"""What is looked at before a training run: the samples as they are, and whether their latents are
those of the autoencoder that the trained network will be used with."""

import dataclasses
import logging

from cluster.prepare_state import read_plan
from sdxl_core.contract.config import parse_toml
from sdxl_core.contract.errors import ConfigError, SdxlError
from sdxl_core.contract.samples import SAMPLE_IMAGE_COLUMN
from sdxl_core.data.manifest import SampleManifest
from sdxl_core.nets.digest import networks_digest
from sdxl_core.nets.weights import load_model
from sdxl_core.storage.parts import read_run_toml
from sdxl_core.storage.sample_reading import read_unit
from sdxl_core.storage.stores import open_file, open_store
from sdxl_core.training.seeded_batches import Pixels

logger = logging.getLogger(__name__)

# Files whose first rows are looked at before the run; the others are when they are read.
_NUM_PROBED = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleKind:
    """What the rows hold.

    Args:
        pixels: moments or pictures.
        has_texts: the text encoders' output is stored.
        without_aesthetic: the file of a row that has no aesthetic score; "" if all looked at have.
    """

    pixels: Pixels
    has_texts: bool
    without_aesthetic: str


def look_at_samples(manifest: SampleManifest, *, retries: int, timeout_s: float) -> SampleKind:
    """Reads the first rows of some files of every dataset.

    Raises:
        ConfigError: the datasets hold different things.
        StoreError: a file cannot be read.
    """
    step = max(1, len(manifest.files) // _NUM_PROBED)
    found: dict[tuple[Pixels, bool], str] = {}
    without_aesthetic = ""
    for url in manifest.files[::step]:
        store, path = open_file(url, retries=retries, timeout_s=timeout_s)
        rows = read_unit(store, path, 0)
        pixels: Pixels = "images" if SAMPLE_IMAGE_COLUMN in rows.column_names else "latents"
        found.setdefault((pixels, "text_states" in rows.column_names), url)
        if rows["aesthetic"].null_count:
            without_aesthetic = without_aesthetic or url
    if len(found) > 1:
        places = "; ".join(
            f"{pixels}{' and texts' if texts else ''} in {url}"
            for (pixels, texts), url in found.items()
        )
        raise ConfigError(f"samples: the datasets hold different things: {places}")
    (pixels, has_texts), *_ = found
    return SampleKind(pixels=pixels, has_texts=has_texts, without_aesthetic=without_aesthetic)


def refuse_other_latents(urls: list[str], model: str, variant: str | None, digest: str) -> None:
    """Checks that stored latents were made by the autoencoder of the model.

    Args:
        urls: of the samples datasets.
        model: whose autoencoder they are to be of.
        variant: of its files.
        digest: of the whole model.

    Raises:
        ConfigError: they are of another, or it cannot be told.
    """
    own = ""
    for url in urls:
        store = open_store(url)
        plan, run = read_plan(store), read_run_toml(store)
        encoded_by = "" if plan is None else plan.identities.get("model", "")
        if encoded_by == digest:
            continue
        path = parse_toml(run or "", where=url).get("model", "auto")
        path = "tiny" if path == "auto" else path
        own = own or _autoencoder_digest(model, variant)
        try:
            other = _autoencoder_digest(path, None)
        except SdxlError as error:
            raise ConfigError(
                f"{url}: its latents were made with the model {encoded_by[:16]}, which is not at "
                f"{path} any more ({error}); this run has {digest[:16]}. If both have the same "
                "autoencoder, say --any-latents"
            ) from error
        if other != own:
            raise ConfigError(
                f"{url}: its latents were made by the autoencoder of {path} ({other[:16]}), this "
                f"run's is that of {model} ({own[:16]}). Prepare the samples with --model {model}"
            )


def _autoencoder_digest(model: str, variant: str | None) -> str:
    loaded = load_model(model, variant=variant, components=("vae",))
    return networks_digest({"vae": loaded.vae}, dtypes=loaded.stored_dtypes)
