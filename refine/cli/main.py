"""The `refine` command. A verb's module is imported only when the verb is called, so `refine --help` is fast."""

from __future__ import annotations

import importlib
import os

import click

import refine
from refine.system.one_line_errors import one_line_errors

# verb: (module:object, the line shown by --help)
VERBS = {
    "demo": ("refine.cli.demo:demo", "Train a model for a minute until it finds needles that it missed."),
    "data": ("refine.cli.data:data", "Fetch the raw text and check it against data.dvc."),
    "prepare": ("refine.cli.prepare:prepare", "Make tokenizer, token sequences and test prompts (the DVC stages)."),
    "train": ("refine.cli.train:train", "Train one arm of one phase; started again, it resumes."),
    "pretrain": ("refine.cli.pretrain:pretrain", "Train a small model from a settings file alone."),
    "generate": ("refine.cli.generate:generate", "Write on from a text of any length, out of the memory."),
    "evaluate": ("refine.cli.evaluate:evaluate", "Score a model: next-token loss, needles, questions, LongBench."),
    "summary": ("refine.cli.summary:summary", "Print the last experiment's results and where they are."),
    "compare": ("refine.cli.compare:compare", "Print the registered model versions side by side."),
    "register": ("refine.cli.register:register", "Make a model folder a version in MLflow's registry."),
    "promote": ("refine.cli.promote:promote", "Make a version champion, if the rule in params.yaml allows it."),
    "up": ("refine.cli.services:up", "Start Prefect, MLflow and a worker on this machine."),
    "down": ("refine.cli.services:down", "Stop what `refine up` started."),
    "worker": ("refine.cli.services:worker", "Run a worker on this machine for servers on another one."),
    "status": ("refine.cli.status:status", "Show the services and the runs in progress."),
    "deploy": ("refine.cli.deploy:deploy", "Register schedules, phases and sweeps with Prefect."),
    "report": ("refine.cli.report:report", "Write an experiment's results as the paper's tables."),
    "warm-up": ("refine.cli.warm_up:warm_up", "Compile a model's GPU kernels before a training needs them."),
    "doctor": ("refine.cli.doctor:doctor", "Check the installation, the device, the data and the servers."),
}


class LazyGroup(click.Group):
    """A group that lists its verbs by name and imports a verb's module only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        module, attribute = VERBS[name][0].split(":")
        return getattr(importlib.import_module(module), attribute)

    def resolve_command(self, ctx, args):
        from refine.errors import nearest

        if args and args[0] not in VERBS and not args[0].startswith("-"):
            raise click.UsageError(f"no verb {args[0]!r}{nearest(args[0], VERBS)}; `refine --help` lists them")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, line) for name, (_, line) in VERBS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(refine.__version__, prog_name="refine")
def cli() -> None:
    """Train fast-weight language models by next-sequence prediction (REFINE, arXiv 2602.16704)."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point: runs a verb. An error that the user can correct becomes one line and exit code 1."""
    if "DVC_STAGE" in os.environ:
        from refine.system.processes import die_with_dvc

        die_with_dvc()
    with one_line_errors(before=_let_other_ranks_print):
        cli.main(args=arguments, prog_name="refine")


def _let_other_ranks_print(in_one_line: bool) -> None:
    """In one of several training processes: if another one is to print the error, wait until torchrun ends this one."""
    if "RANK" in os.environ:
        from refine.training.torchrun import wait_for_first_error

        wait_for_first_error(in_one_line)


if __name__ == "__main__":
    main()
