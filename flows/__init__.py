"""The experiment as a Prefect flow. This file sets the environment before anything imports prefect or mlflow."""

from flows import one_line_logs
from refine.services import environment

environment.prepare()
one_line_logs.install()
