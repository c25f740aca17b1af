"""clusters.json."""

import pytest

from distiller.clustering.files import read_clusters
from distiller.objectives.config import ClustersConfig
from upstream.errors import UserError


def test_a_damaged_clusters_file_is_named(tmp_path):
    (tmp_path / "clusters.json").write_text('{"layers": [0]}')
    with pytest.raises(UserError, match=r"clusters\.json cannot be read: KeyError"):
        read_clusters(tmp_path / "clusters.json", ClustersConfig())
