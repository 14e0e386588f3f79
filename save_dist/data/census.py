"""CELLxGENE Census: from a version to the experiment that holds it. Extra `census`."""

from typing import Any

import tiledbsoma

from save_dist.core.errors import ConfigError, DataError, InfrastructureError

_KEPT = ("vfs.s3.region", "vfs.s3.no_sign_request")
"""What of the Census's own TileDB settings is needed to read it: a public bucket, its region."""


def locate(version: str, organism: str) -> tuple[str, dict[str, str]]:
    """URI of an organism's experiment in a version, and the TileDB settings to read it.

    The URI names the version itself, also for `stable` and `latest`.

    Raises:
        ConfigError: if the extra is not installed.
        DataError: if there is no such version or organism.
        InfrastructureError: if the Census cannot be reached.
    """
    try:
        import cellxgene_census
    except ImportError as e:
        raise ConfigError(
            f"source.census={version} needs the extra: pip install 'save-dist[census]'; or give "
            "the URI of the experiment in source.uri"
        ) from e
    try:
        with cellxgene_census.open_soma(census_version=version) as census:
            return _experiment(census, organism)
    except DataError:
        raise
    except ValueError as e:
        raise DataError(f"source.census={version}: {e}") from e
    except (OSError, tiledbsoma.SOMAError) as e:
        raise InfrastructureError(
            f"Census {version} cannot be reached: {e}; it is read from a public bucket over the "
            "network: try again, or give a copy in source.uri"
        ) from e


def _experiment(census: Any, organism: str) -> tuple[str, dict[str, str]]:
    organisms = census["census_data"]
    if organism not in organisms:
        raise DataError(
            f"the Census has no organism {organism!r}; it has: {', '.join(sorted(organisms))}; "
            "correct source.organism"
        )
    settings = dict(census.context.tiledb_config)
    return str(organisms[organism].uri), {k: str(settings[k]) for k in _KEPT if k in settings}
