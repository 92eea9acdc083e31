"""A pool that does not exist, or does not run processes, is refused before a worker waits for its runs."""

from __future__ import annotations

from types import SimpleNamespace

import prefect.client.orchestration
import pytest

from refine.errors import ServiceError
from refine.services import checkout, prefect_api, work_pools, worker


@pytest.fixture
def server(monkeypatch):
    """A Prefect server with a pool of processes and one of containers."""

    class Client:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def read_work_pools(self):
            return [SimpleNamespace(name="gpu", type="process"), SimpleNamespace(name="k8s", type="kubernetes")]

    monkeypatch.setattr(prefect.client.orchestration, "get_client", lambda sync_client: Client())


def test_an_unknown_pool_is_reported_with_the_existing_ones(server):
    work_pools.check("gpu")
    work_pools.check("k8s")
    with pytest.raises(ServiceError, match=r"no work pool 'gpus' \(did you mean 'gpu'\?\); existing pools: gpu, k8s"):
        work_pools.check("gpus")


@pytest.mark.parametrize(
    ("pool", "message"), [("gpux", "no work pool 'gpux'"), ("k8s", "'k8s' is of type kubernetes.*prefect worker start")]
)
def test_a_worker_accepts_only_a_pool_of_processes(server, home, monkeypatch, request, pool, message):
    folder = request.getfixturevalue("checkout")
    monkeypatch.setenv(checkout.VARIABLE, str(folder))
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setattr(prefect_api, "check_answers", lambda url: None)
    with pytest.raises(ServiceError, match=message):
        worker.serve(pool)
