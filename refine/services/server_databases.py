"""Checks the databases of Prefect's and MLflow's servers, and MLflow's artifact store, before a server starts."""

from __future__ import annotations

import asyncio
import importlib.util
import os

from refine.errors import ServiceError, SettingError, reason, without_secrets

PATIENCE = 10.0  # seconds that a database has to answer
FORMS = {
    "prefect": ("postgresql+asyncpg", "sqlite+aiosqlite"),
    "mlflow": ("postgresql+pg8000", "postgresql+psycopg2", "postgresql", "sqlite"),
}
DRIVERS = {"postgresql": "psycopg2", "postgresql+psycopg2": "psycopg2", "postgresql+pg8000": "pg8000"}


def check(url: str, server: str) -> None:
    """Check that `server` (prefect or mlflow) can use the database at `url`. No message contains its password.

    Raises SettingError: the address has the wrong form, or its driver is not installed. Raises ServiceError: the
    database does not answer, or refuses.
    """
    import sqlalchemy

    option = f"--{server}-database"
    try:
        if any(sign.isspace() for sign in url):
            raise ValueError("a space")
        parsed = sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise SettingError(f"{option}: expected {FORMS[server][0]}://USER:PASSWORD@HOST:PORT/DATABASE") from None
    shown = without_secrets(url)
    if parsed.drivername not in FORMS[server]:
        raise SettingError(f"{option} {shown}: expected an address that begins with {' or '.join(FORMS[server])}")
    driver = DRIVERS.get(parsed.drivername)
    if driver and importlib.util.find_spec(driver) is None:
        raise SettingError(f"{option} {shown}: {driver} is not installed; pip install -e '.[team]' brings pg8000")
    if parsed.get_backend_name() == "postgresql":
        try:
            asyncio.run(_ask_postgresql(parsed))
        except Exception as error:  # the driver raises its own, the system's and the server's errors
            message = reason(without_secrets(str(error), url) or type(error).__name__)
            raise ServiceError(f"{option}: database {shown} cannot be used: {message}") from None


async def _ask_postgresql(url: object) -> None:
    import asyncpg

    given = {name: getattr(url, name) for name in ("host", "port", "database", "password")}
    connection = await asyncpg.connect(user=getattr(url, "username", None), timeout=PATIENCE, **given)
    await connection.close()


def check_artifacts(address: str) -> None:
    """Send one request to the bucket of an s3:// `address`. Other addresses are folders and need no check.

    Raises ServiceError, within 15 s: the store does not answer, or refuses. Raises DataError: no such bucket.
    """
    from refine.data import parquet

    if address.startswith("s3://"):
        parquet.ask_bucket(address, f"--artifacts {address}", os.environ.get("MLFLOW_S3_ENDPOINT_URL"))
