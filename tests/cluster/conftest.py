"""Makes the shared fixtures known here."""

from tests.ray_fixtures import local_ray, models

__all__ = ["local_ray", "models"]
