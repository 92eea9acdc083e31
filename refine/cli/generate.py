"""`refine generate`: read texts into the memory, and write on from it, token by token, as the tokens come.

A memory can be saved after a long text and loaded again: the text is read once, and asked many times.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refine.cli import options
from refine.errors import DataError, ModelError, SettingError

if TYPE_CHECKING:
    from torch import Tensor

    from refine.models import FastWeightLanguageModel, Memory

STDIN = Path("-")
CONTEXT = 8  # tokens before an answer that its decoding sees: whether a space stands before the first word
LEAST_TEMPERATURE = 1e-3  # below, the likeliest token has all of the probability


@click.command()
@click.argument("model", metavar="FOLDER|NAME|models:/NAME@ALIAS")
@click.option("--prompt", "prompts", multiple=True, help="Text to go on from, after --file; repeatable: each alone.")
@click.option("--file", type=options.PATH, help="Text file (UTF-8) of any length to read first; - is standard input.")
@click.option("--memory", type=options.PATH, help="Memory saved by --save-memory, to read on from.")
@click.option("--save-memory", type=options.PATH, help="Save the memory after --file (without one: after the prompt).")
@click.option(
    "--tokens", type=click.IntRange(0, options.MOST_TOKENS), default=100, show_default=True,
    help="Tokens to write, at most; 0 reads only.",
)  # fmt: skip
@click.option(
    "--temperature", type=float, default=0.0, show_default=True, help="Of the sampling; 0 takes the likeliest token."
)
@options.chat()
@click.option("--tokenizer", show_default="the model's own", help="Folder, hub name or mistral_v1.")
@options.seed(1)
@options.device()
def generate(model: str, prompts: tuple[str, ...], file: Path | None, **others: Any) -> None:
    """Write on from a text of any length, out of the memory. Only what the model writes goes to standard output."""
    from refine.cli.registered_model import fetched
    from refine.evaluation.evaluate import check_model, model_tokenizer
    from refine.system.exhausted import out_of_memory_in_one_line
    from refine.system.quiet import quiet_libraries

    quiet_libraries()
    _check(prompts, file, others)
    text = None if file is None else _text(file)
    with fetched(model) as folder:
        tokenizer = model_tokenizer(others["tokenizer"] or folder)
        check_model(folder, tokenizer)
        prompts = _in_chat(tokenizer, prompts) if others["chat"] else prompts
        with out_of_memory_in_one_line(ModelError, f"with {model}", "take a smaller model, or another --device"):
            loaded, weights = _load(folder, others["device"])
            memory = _saved_memory(others["memory"], loaded, weights)
            memory, last = _read_file(loaded, tokenizer, text, memory, others["save_memory"], weights)
            for number, prompt in enumerate(prompts or ("",)):
                if number:
                    click.echo()
                _answer(loaded, tokenizer, prompt, memory, last, others, "" if text is not None else weights)


def _check(prompts: Sequence[str], file: Path | None, others: dict[str, Any]) -> None:
    """Raise SettingError for options that contradict each other, before a model is loaded."""
    temperature, save = others["temperature"], others["save_memory"]
    if not prompts and file is None:
        after = "after the memory, which holds no last token to go on from" if others["memory"] else "first"
        raise SettingError(f"nothing to read: give the text that comes {after}, with --prompt or --file")
    if others["chat"] and not prompts:
        raise SettingError(
            "--chat asks each --prompt as the user's turn, and there is none: give one, or leave out --chat"
        )
    if any(not prompt for prompt in prompts):
        raise SettingError("--prompt is empty: expected a text")
    if not (temperature == 0 or LEAST_TEMPERATURE <= temperature <= 1000):
        raise SettingError(
            f"--temperature {temperature}: expected 0 (the likeliest tokens), or {LEAST_TEMPERATURE} to 1000"
        )
    if others["tokens"] == 0 and save is None:
        raise SettingError("--tokens 0 only reads: name the file for the memory with --save-memory, or write tokens")
    if save is not None and file is None and len(prompts) > 1:
        raise SettingError("--save-memory with several --prompt: give one prompt, or the text to keep as --file")
    if save is not None:
        options.check_file(save, "--save-memory")
    options.check_device(others["device"])


def _in_chat(tokenizer: Any, prompts: Sequence[str]) -> tuple[str, ...]:
    """`prompts` as the user's turns. Raises DataError: the tokenizer has no chat template, or one that does not fit."""
    from refine.data.prompts.chat import ChatForm

    return tuple(map(ChatForm(tokenizer, "--chat: the tokenizer"), prompts))


def _text(file: Path) -> str:
    """The text of `file`. Raises DataError: missing, not UTF-8, empty."""
    from refine.system.readers import read_text

    if file == STDIN:
        try:
            text = sys.stdin.buffer.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"standard input: not UTF-8 text ({error.reason} at byte {error.start})") from None
    else:
        text = read_text(file, "a text to read")
    if not text:
        raise DataError(f"{'standard input' if file == STDIN else file}: is empty; expected a text to read")
    return text


def _load(folder: str, device: str | None) -> tuple[FastWeightLanguageModel, str]:
    """The model on its device, and the hash of its weights."""
    from refine.identity import hash_of_files
    from refine.models import load_for_reading
    from refine.models.weights import resolve, weight_files

    return load_for_reading(folder, device), hash_of_files(*weight_files(resolve(folder)))


def _saved_memory(file: Path | None, model: FastWeightLanguageModel, weights: str) -> Memory | None:
    from refine.models import Memory

    if file is None:
        return None
    memory = Memory.load(file, weights=weights).to(model.device, model.dtype)
    if memory.rows != 1 or memory.signature != model.signature():
        raise ModelError(
            f"{file}: holds {memory.rows} memories of {memory.signature!r}; expected one of {model.signature()!r}"
        )
    return memory


def _read_file(
    model: FastWeightLanguageModel, tokenizer: Any, text: str | None, memory: Memory | None, save: Path | None,
    weights: str,
) -> tuple[Memory | None, Tensor | None]:  # fmt: skip
    """The memory after `text` and the state of its last token; saved in `save`. Without a text: `memory`, None."""
    if text is None:
        return memory, None
    tokens = _tokens(tokenizer, text, memory)
    start = time.perf_counter()
    memory, last = _read(model, tokens, memory)
    seconds, before = time.perf_counter() - start, int(memory.positions[0]) - len(tokens)
    click.echo(f"read {len(tokens):,} tokens{f' after {before:,}' * (before > 0)} in {seconds:.1f} s", err=True)
    _save(memory, save, weights)
    return memory, last


def _tokens(tokenizer: Any, text: str, memory: Memory | None) -> list[int]:
    """`text` as tokens: with the bos in front if nothing was read before it."""
    return list(tokenizer(text, add_special_tokens=memory is None)["input_ids"])


def _read(model: FastWeightLanguageModel, tokens: list[int], memory: Memory | None) -> tuple[Memory, Tensor]:
    """Read `tokens`, while a line on a terminal says how many were read."""
    import torch

    from refine.cli.progress_line import moving_line
    from refine.models import read_in_pieces

    with moving_line() as (move, _):
        return read_in_pieces(
            model, torch.tensor([tokens]), memory, each=lambda read: move(f"read {read:,} of {len(tokens):,} tokens")
        )


def _save(memory: Memory, file: Path | None, weights: str) -> None:
    if file is not None:
        memory.save(file, weights)
        size = f"{memory.nbytes / 2**20:.1f} MiB"
        click.echo(f"wrote {file} (the memory of {int(memory.positions[0]):,} tokens, {size})", err=True)


def _answer(
    model: FastWeightLanguageModel, tokenizer: Any, prompt: str, memory: Memory | None, last: Tensor | None,
    others: dict[str, Any], weights: str,
) -> None:  # fmt: skip
    """Read `prompt` after `memory` and print what follows. With `weights`, the memory after the prompt is saved."""
    tokens = _tokens(tokenizer, prompt, memory) if prompt else []
    if tokens:
        memory, last = _read(model, tokens, memory)
    assert memory is not None and last is not None
    if weights:
        _save(memory, others["save_memory"], weights)
    if not others["tokens"]:
        return
    stop = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    write = partial(_writer(model, others["temperature"], others["seed"]), memory, last, others["tokens"], stop=stop)
    write(each=_printer(tokenizer, tokens[-CONTEXT:]))
    click.echo()


def _writer(model: FastWeightLanguageModel, temperature: float, seed: int) -> Callable[..., Any]:
    import torch

    if temperature == 0:
        return model.continue_greedily
    return partial(model.continue_sampled, seeds=torch.tensor([seed]), temperature=temperature)


def _printer(tokenizer: Any, before: list[int]) -> Callable[[Tensor], None]:
    """A function that prints each token as soon as its characters are whole; `before`: the tokens before the first."""
    from tokenizers.decoders import DecodeStream

    stream = DecodeStream(before, skip_special_tokens=True)

    def show(token: Tensor) -> None:
        text = stream.step(tokenizer.backend_tokenizer, int(token[0]))
        if text:
            click.echo(text, nl=False)

    return show
