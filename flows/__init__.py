"""The experiment as a Prefect flow. This file sets the environment before anything imports prefect or mlflow."""

from refine.services import environment

environment.prepare()
