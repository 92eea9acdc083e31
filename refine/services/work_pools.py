"""Work pools of the Prefect server that PREFECT_API_URL names."""

from __future__ import annotations

from refine.errors import ServiceError, nearest

PROCESSES = "process"  # the type of pools whose runs are processes on the worker's machine


def check(pool: str, kind: str | None = None) -> None:
    """Raises ServiceError if the server has no such pool, the pool's type is not `kind` (None: any type), or the server
    refuses to list its pools."""
    import httpx
    from prefect.client.orchestration import get_client

    try:
        with get_client(sync_client=True) as client:
            known = {one.name: one.type for one in client.read_work_pools()}
    except httpx.HTTPStatusError as error:
        code = error.response.status_code
        secret = "; set PREFECT_API_AUTH_STRING to the server's user:password (`refine status --secret`)"
        hint = secret if code in (401, 403) else ""
        raise ServiceError(f"Prefect's server refuses to list its work pools (HTTP {code}){hint}") from None
    if pool not in known:
        raise ServiceError(
            f"no work pool {pool!r}{nearest(pool, known)}; existing pools: {', '.join(known) or 'none'}; "
            f"create one with `prefect work-pool create {pool} --type process` or `refine up --pool {pool}`"
        )
    if kind not in (None, known[pool]):
        raise ServiceError(
            f"work pool {pool!r} is of type {known[pool]}: start its workers with `prefect worker start -p {pool}`"
        )
