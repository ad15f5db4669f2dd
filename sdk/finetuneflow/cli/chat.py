"""`ftf chat`: a conversation with a model."""

from __future__ import annotations

import sys

import typer

from finetuneflow.cli.console import error_console
from finetuneflow.cli.generate import MaxNewTokens, Model, Seed, System, Temperature, TopP, show_part
from finetuneflow.cli.session import session
from finetuneflow.errors import InvalidArgument

_HELP = "/system TEXT sets the system prompt, /reset begins a new conversation, /quit ends. Ctrl-C stops an answer."


def chat(
    ctx: typer.Context,
    model: Model,
    system: System = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
) -> None:
    """Talk with a model. Ctrl-C stops an answer, Ctrl-D ends the conversation."""
    models = session(ctx).client.models
    console = error_console()
    console.print(_HELP, style="dim")
    messages: list[dict[str, str]] = []
    while (said := _read()) is not None:
        command, _, rest = said.partition(" ")
        match command:
            case "":
                continue
            case "/quit":
                return
            case "/reset":
                messages.clear()
                continue
            case "/system":
                system = rest.strip() or None
                console.print("The system prompt is set." if system else "The system prompt is the job's.", style="dim")
                continue
        if command.startswith("/"):
            console.print(_HELP, style="dim")
            continue
        messages.append({"role": "user", "content": said})
        parts = models.generate(
            model,
            messages=messages,
            system_prompt=system,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
        )
        texts = []
        try:
            for part in parts:
                show_part(part)
                texts.append(str(part))
        except KeyboardInterrupt:
            console.print(" (stopped)", style="dim")
        except InvalidArgument as error:
            if error.reason != "PROMPT_TOO_LONG":
                raise
            messages.pop()
            console.print(f"{error.message} Or begin a new conversation with /reset.", style="red")
            continue
        finally:
            parts.close()
        sys.stdout.write("\n")
        messages.append({"role": "assistant", "content": "".join(texts)})


def _read() -> str | None:
    """Returns a line of the user; None at the end of the input. Ctrl-C drops what was typed."""
    while True:
        try:
            typed = input("> " if sys.stdin.isatty() else "").strip()
            # Bytes that are no text must not end the conversation.
            return typed.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        except EOFError:
            return None
        except KeyboardInterrupt:
            sys.stdout.write("\n")
