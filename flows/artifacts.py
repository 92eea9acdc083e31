"""Prefect's page of a flow: a link to MLflow from the start, and at the end the result as a table and a picture, with
the champion."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flows.experiment import Experiment
from flows.progress import say
from refine.errors import without_secrets
from refine.reports.comparison import Comparison
from refine.tracking.connection import tracking_uri
from refine.tracking.pages import comparison_page, run_page
from refine.tracking.registry import Version
from refine.tracking.tags import CHAMPION_WHY, RECORD

if TYPE_CHECKING:
    from mlflow import MlflowClient


def link(this: Experiment) -> None:
    """Link to the MLflow run of this flow run, if a server shows it."""
    from prefect.artifacts import create_link_artifact

    page = run_page(this.experiment_id, this.parent)
    if page:
        say(f"MLflow: {page}")
        create_link_artifact(page, link_text=f"{this.name} in MLflow", key="mlflow", description="this run in MLflow")


def description(this: Experiment, best: Version, files: Sequence[Path]) -> str:
    """The text at the top of the run's page in MLflow: the table of the arms, the champion, and what they come from."""
    of = this.identity
    changed = " with uncommitted changes" if of.dirty else ""
    return (
        f"{files[0].read_text(encoding='utf-8')}\n{_champion(best)}\n\n"
        f"Commit `{of.commit[:12]}`{changed}, data `{of.data}`, seed {of.seed}. The metrics are the arms' headline "
        f"scores; every score: artifacts, `results/`; the rest: `{RECORD}`.\n"
    )


def _champion(best: Version) -> str:
    return f"Champion: **{best.name} version {best.label}**, {best.tags.get(CHAMPION_WHY, '')}"


def publish(this: Experiment, comparison: Comparison, best: Version, files: Sequence[Path]) -> None:
    """Show the comparison as a table and as a picture, with links to MLflow. files: the table's, the picture last."""
    from prefect.artifacts import create_image_artifact, create_markdown_artifact

    page = run_page(this.experiment_id, this.parent)
    where = f"[MLflow]({page})" if page else f"MLflow at `{without_secrets(tracking_uri())}` (`refine up` shows it)"
    curves = comparison_page(this.client, comparison.versions)
    text = (
        f"# {this.name}\n\n{files[0].read_text(encoding='utf-8')}\n\n"
        f"{_champion(best)}\n\n"
        f"Runs and models: {where}, run `{this.parent}`\n"
        + (f"\nThe arms' curves: [side by side]({curves})\n" if curves else "")
        + f"\n## Every score\n\n{comparison.markdown()}\n\nBold: the best of the row; in brackets: 95 % intervals\n"
    )
    create_markdown_artifact(text, key="comparison", description=f"{this.name}: the arms side by side")
    picture = files[-1]
    data = base64.b64encode(picture.read_bytes()).decode()
    create_image_artifact(
        f"data:image/png;base64,{data}", key="comparison-picture", description=f"{this.name}: scores with intervals"
    )


def publish_sweep(name: str, client: MlflowClient, comparison: Comparison) -> None:
    """Show the versions of a sweep as a table, with the settings that differ."""
    from prefect.artifacts import create_markdown_artifact

    curves = comparison_page(client, comparison.versions)
    text = f"# {name}\n\n{comparison.markdown()}\n\nBold: the best of the row; in brackets: 95 % intervals\n"
    text += f"\nThe curves: [side by side]({curves})\n" if curves else ""
    create_markdown_artifact(text, key="sweep", description=f"{name}: every combination side by side")
