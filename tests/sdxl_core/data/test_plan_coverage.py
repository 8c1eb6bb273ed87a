"""A brute-force count over all batches is the oracle for what is counted without the rows."""

from hypothesis import assume, given
from hypothesis import strategies as st

from sdxl_core.contract.errors import ConfigError
from sdxl_core.data.plan import PlanSettings, SampleManifest, plan_epoch
from tests.sdxl_core.data.manifests import (
    BUCKETS,
    WEIGHTS,
    all_rows,
    manifests,
    needs_a_bucket,
    plan_settings,
    times_seen,
)


@given(
    manifest=manifests(weights=WEIGHTS),
    settings=plan_settings(remainders="drop carry repeat"),
    epoch=st.integers(0, 3),
)
def test_coverage_is_what_counting_every_row_gives(
    manifest: SampleManifest, settings: PlanSettings, epoch: int
) -> None:
    needs_a_bucket(manifest, settings)
    try:
        plan = plan_epoch(manifest, settings, epoch)
    except ConfigError:
        assume(False)
    seen = times_seen(plan.batches())
    coverage = plan.coverage()
    for number, found in enumerate(coverage.buckets):
        times = [seen[row] for row in all_rows(manifest, number)]
        assert found.bucket == BUCKETS[number]
        assert found.num_rows == len(times)
        assert found.num_unseen == times.count(0)
        assert found.num_once == times.count(1)
        assert found.num_repeated == len(times) - times.count(0) - times.count(1)
        assert found.num_drawn == sum(times)
    assert coverage.num_rows == manifest.num_rows
    assert coverage.num_batches == plan.num_batches
