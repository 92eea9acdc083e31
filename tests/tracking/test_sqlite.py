"""A new SQLite file is made without waiting for the disk; once it is there, everything waits again."""

from __future__ import annotations

from sqlalchemy import create_engine, text

from refine.tracking.connection import file_of, quickly_made

OFF, FULL = 0, 2


def synchronous(engine) -> int:
    with engine.connect() as connection:
        return connection.execute(text("PRAGMA synchronous")).scalar()


def test_only_a_new_file_is_made_in_a_hurry(tmp_path):
    uri = f"sqlite:///{tmp_path}/of%20runs.db"
    assert file_of(uri) == tmp_path / "of runs.db"
    with quickly_made(f"sqlite:///{file_of(uri)}"):
        engine = create_engine(f"sqlite:///{file_of(uri)}")
        assert synchronous(engine) == OFF
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE runs (id INTEGER)"))
    assert synchronous(engine) == FULL, "the connection that made it is used on"
    assert synchronous(create_engine(engine.url)) == FULL, "later ones know nothing of it"
    with quickly_made(uri):
        assert synchronous(create_engine(engine.url)) == FULL, "the file was there"


def test_other_databases_are_left_alone():
    with quickly_made("postgresql+pg8000://me@db/mlflow"):
        assert synchronous(create_engine("sqlite://")) == FULL
