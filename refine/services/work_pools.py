"""Work pools of the Prefect server that PREFECT_API_URL names."""

from __future__ import annotations

from refine.errors import ServiceError, nearest

PROCESSES = "process"  # type of the pools whose runs are processes of the worker's machine


def check(pool: str, kind: str | None = None) -> None:
    """Raises ServiceError where the server has no such pool, it is of another type than `kind` (where that is named),
    or the server does not let us ask."""
    import httpx
    from prefect.client.orchestration import get_client

    try:
        with get_client(sync_client=True) as client:
            known = {one.name: one.type for one in client.read_work_pools()}
    except httpx.HTTPStatusError as error:
        code = error.response.status_code
        hint = "; set PREFECT_API_AUTH_STRING to the server's user:password" if code in (401, 403) else ""
        raise ServiceError(f"Prefect's server does not list its work pools: it says {code}{hint}") from None
    if pool not in known:
        raise ServiceError(
            f"no work pool {pool!r}{nearest(pool, known)}; there are: {', '.join(known) or 'none'}; make one with "
            f"`prefect work-pool create {pool} --type process`, or let `refine up --pool {pool}` do it"
        )
    if kind not in (None, known[pool]):
        raise ServiceError(
            f"work pool {pool!r} is of type {known[pool]}: start its workers with `prefect worker start -p {pool}`"
        )
