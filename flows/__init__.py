"""The experiment as a Prefect flow. The environment is set here, before anything imports prefect or mlflow."""

from refine.services import environment

environment.prepare()
