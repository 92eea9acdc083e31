"""REFINE's step beside other people's: transformers' own Gated DeltaNet, and TRL's GRPO on the same prefixes.

    pip install -e '.[peers]'
    OMP_NUM_THREADS=1 python -m benchmarks.peers      # prints the table; writes peers.md beside this

One hybrid of Gated DeltaNet and attention (Qwen3.5's kind, 1.7M parameters), the same weights in our class and in
transformers', on a CPU in float32. A text of T tokens, c positions in it, n rollouts of k tokens at each. All steps are
forward and backward; TRL's includes the optimizer's, which is a hundredth of it. Ratios are medians over rounds of the
ratio to our next-token step in the same round.

TRL gets each prefix as a prompt of its own, with n generations of k tokens and the share of right tokens as the reward;
it pads the prompts to the longest. fla's layers have no path on a CPU. TRL's loop runs in a thread of its own, so that
several threads of torch would get into each other's way: use one.
"""

from __future__ import annotations

import inspect
import tempfile
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.measure import measured_rounds, median
from benchmarks.models import HYBRIDS
from refine.models import from_config, from_pretrained
from refine.objective import ObjectiveSettings, next_sequence_step
from refine.objective.rereading import Rereading
from refine.ops.token_statistics import token_statistics
from refine.system.quiet import quiet_libraries

K, SEED = 5, 7


@dataclass(frozen=True)
class Peer:
    """A contender: its step, the tokens that go through the model in it (padding too), and what it leaves out."""

    name: str
    step: Callable[[], Any]
    read: int
    skips: str


class Text:
    """T random tokens and c positions at equal distances."""

    def __init__(self, tokens: int, positions: int, vocabulary: int) -> None:
        seeded = torch.Generator().manual_seed(tokens)
        self.tokens = torch.randint(3, vocabulary, (1, tokens), generator=seeded)
        self.positions = [tokens * (i + 1) // (positions + 1) for i in range(positions)]


def peers(text: Text, rollouts: int, folder: Path) -> list[Peer]:
    """The contenders, on one set of weights that is saved in `folder`."""
    torch.manual_seed(0)
    from_config(HYBRIDS["Qwen3.5"]).save_pretrained(folder)
    ours, theirs = from_pretrained(folder).train(), _transformers(folder)
    length, rows = text.tokens.shape[1], rollouts * len(text.positions)
    settings = ObjectiveSettings(positions=len(text.positions), rollout_length=K, rollouts=rollouts, reward="binary")
    places, seeds = torch.tensor([text.positions]), torch.tensor([SEED])

    def refine(**how: Any) -> Callable[[], None]:
        def step() -> None:
            ours.zero_grad()
            next_sequence_step(ours, text.tokens, settings, seeds, positions=places, **how).loss.backward()

        return step

    again = rollouts * sum(text.positions)  # every rollout reads its prefix, to sample and to be scored
    padded, rolled = rows * max(text.positions), rows * (2 * K - 1)
    return [
        Peer("next-token step, refine", lambda: _next_token(ours, text), length, "rollouts"),
        Peer("next-token step, transformers", lambda: _their_next_token(theirs, text), length, "rollouts"),
        Peer("REFINE step, one read", refine(), length + rolled, "nothing"),
        Peer("REFINE step, prefixes read again", refine(read=Rereading()), length + 2 * again + rolled, "nothing"),
        Peer("GRPO step, TRL", _grpo(theirs, text, rollouts, folder), 2 * padded + rolled, "the next-token loss"),
    ]


def _next_token(model: Any, text: Text) -> None:
    model.zero_grad()
    hidden = model.read(text.tokens).hidden
    token_statistics(hidden[:, :-1], model.lm_head.weight, text.tokens[:, 1:]).loss.backward()


def _their_next_token(model: Any, text: Text) -> None:
    model.zero_grad()
    model(input_ids=text.tokens, labels=text.tokens, use_cache=False).loss.backward()


def _transformers(folder: Path) -> Any:
    """The saved weights in transformers' class, on its PyTorch path.

    Where fla is installed, that class calls fla's kernels, which have none for a CPU.
    """
    from transformers.models.qwen3_5 import modeling_qwen3_5 as theirs

    for name in ("torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"):
        plain = inspect.unwrap(getattr(theirs, name))
        setattr(theirs, name, _with_known_arguments(plain))
    return theirs.Qwen3_5ForCausalLM.from_pretrained(folder).train()


def _with_known_arguments(function: Callable[..., Any]) -> Callable[..., Any]:
    known = inspect.signature(function).parameters
    return lambda *args, **more: function(*args, **{name: x for name, x in more.items() if name in known})


def _numbers(vocabulary: int) -> Any:
    """A tokenizer for TRL, which takes prompts as texts: token 17 is the word "17"."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({str(i): i for i in range(vocabulary)}, unk_token="0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="0", pad_token="1", eos_token="2")


def _grpo(model: Any, text: Text, rollouts: int, folder: Path) -> Callable[[], None]:
    """A step of TRL's trainer on all prefixes."""
    import datasets
    from trl import GRPOConfig, GRPOTrainer

    tokens = text.tokens[0].tolist()
    prompts = [{"prompt": " ".join(map(str, tokens[:p])), "true": tokens[p : p + K]} for p in text.positions]

    def right(completions: list[str], true: list[list[int]], **_: Any) -> list[float]:
        written = ([int(word) for word in one.split()] for one in completions)
        return [sum(map(int.__eq__, one, wanted)) / K for one, wanted in zip(written, true, strict=True)]

    options = GRPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=len(prompts) * rollouts,
        num_generations=rollouts,
        max_completion_length=K,
        max_steps=10**6,
        beta=0.0,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model,
        reward_funcs=right,
        args=options,
        train_dataset=datasets.Dataset.from_list(prompts),
        processing_class=_numbers(model.config.vocab_size),
    )
    return _Steps(trainer).one


class _Steps:
    """Runs a trainer's loop a step at a time, in a thread that waits between the steps."""

    def __init__(self, trainer: Any) -> None:
        from transformers import TrainerCallback

        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.error: BaseException | None = None
        steps = self

        class Wait(TrainerCallback):  # type: ignore[misc]
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                steps.go.acquire()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                steps.done.release()

        trainer.add_callback(Wait())

        def run() -> None:
            try:
                trainer.train()
            except BaseException as error:
                self.error = error
                self.done.release()

        threading.Thread(target=run, daemon=True).start()

    def one(self) -> None:
        """The trainer's next step."""
        self.go.release()
        self.done.acquire()
        if self.error is not None:
            raise self.error


@click.command()
@click.option("--tokens", default=512, show_default=True, help="T: tokens of the text.")
@click.option("--positions", default=4, show_default=True, help="c: positions in it.")
@click.option("--rollouts", default=4, show_default=True, help="n: rollouts of 5 tokens at each.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--output", type=Path, default=Path(__file__).with_suffix(".md"), show_default="peers.md beside this")
def main(tokens: int, positions: int, rollouts: int, rounds: int, output: Path) -> None:
    """Measure the steps beside each other, print the table, and write it."""
    quiet_libraries()
    warnings.simplefilter("ignore", FutureWarning)  # of transformers, about names that TRL uses
    with tempfile.TemporaryDirectory() as folder:
        text = Text(tokens, positions, HYBRIDS["Qwen3.5"]["vocab_size"])
        try:
            contenders = peers(text, rollouts, Path(folder))
        except ImportError as error:
            raise click.ClickException(f"{error}; install the peers: pip install -e '.[peers]'") from None
        found = measured_rounds({one.name: one.step for one in contenders}, rounds)
    first = contenders[0].name
    lines = [
        "# REFINE beside its peers",
        "",
        f"`OMP_NUM_THREADS=1 python -m benchmarks.peers` with T = {tokens}, c = {positions}, k = {K}, n = {rollouts}, "
        f"on {torch.get_num_threads()} CPU thread(s), torch {torch.__version__}, {rounds} rounds.",
        "",
        "| step | seconds | over a next-token step | tokens through the model | leaves out |",
        "|---|---|---|---|---|",
        *(
            f"| {one.name} | {median(found, one.name):.3f} | {median(found, one.name, first):.2f} | {one.read} "
            f"| {one.skips} |"
            for one in contenders
        ),
        "",
    ]
    output.write_text("\n".join(lines), encoding="utf-8")
    click.echo("\n".join(lines))


if __name__ == "__main__":
    main()
