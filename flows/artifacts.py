"""What a flow's page in Prefect shows at its end: the result table, the champion, the way to MLflow."""

from __future__ import annotations

from flows.experiment import Experiment
from refine.tracking.comparison import Comparison
from refine.tracking.connection import tracking_uri, without_password
from refine.tracking.registry import Version


def publish(this: Experiment, comparison: Comparison, best: Version) -> None:
    """The comparison as a Markdown artifact of the flow run, and a link to MLflow where a server shows it."""
    from prefect.artifacts import create_link_artifact, create_markdown_artifact

    page = mlflow_page(this)
    where = f"[MLflow]({page})" if page else f"MLflow at `{without_password(tracking_uri())}` (`refine up` shows it)"
    text = (
        f"# {this.name}\n\n{comparison.markdown()}\n\n"
        f"\\* best of the row; in brackets: 95 % intervals\n\n"
        f"Champion: **{best.name} version {best.label}**, {best.tags.get('champion.why', '')}\n\n"
        f"Runs and models: {where}, run `{this.parent}`\n"
    )
    create_markdown_artifact(text, key="comparison", description=f"{this.name}: the arms side by side")
    if page:
        create_link_artifact(page, link_text="the experiment in MLflow", key="mlflow")


def mlflow_page(this: Experiment) -> str:
    """The address of the experiment's run in MLflow, or nothing where MLflow is a database without a server."""
    uri = without_password(tracking_uri())
    return f"{uri.rstrip('/')}/#/experiments/{this.experiment_id}/runs/{this.parent}" if uri.startswith("http") else ""
