"""`keepwarm run`: one answer, or a conversation."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, field

from app.cli.answer import Answer, Interrupted, stream_answer
from app.cli.client import ApiClient, ApiRefused
from app.cli.render import complain, print_json, remark, say, write_text
from tasks.generation import JsonObject

INTERRUPTED_EXIT_CODE = 130
HELP = """\
/clear   forget the conversation
/bye     leave (so does Ctrl-D)
/help    show this
Ctrl-C   stop the answer that is being written
Lines between two lines of \"\"\" are one message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the options of `keepwarm run` ask for."""

    model: str
    system: str | None = None
    options: JsonObject = field(default_factory=dict)  # temperature, max_tokens, seed; only those given

    def body(self, messages: list[JsonObject]) -> JsonObject:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return {
            "model": self.model,
            "messages": [*system, *messages],
            "priority": "interactive",
            **self.options,
        }


def run_once(client: ApiClient, wish: Wish, prompt: str, *, as_json: bool) -> int:
    """Stream the answer to standard output. Returns the exit code."""
    body = wish.body([{"role": "user", "content": prompt}])
    try:
        answer = stream_answer(client, body, _nowhere if as_json else write_text)
    except Interrupted as interruption:
        complain(str(interruption))
        return INTERRUPTED_EXIT_CODE
    if as_json:
        print_json(client.job(answer.job_id))
    elif answer.text and not answer.text.endswith("\n"):
        write_text("\n")
    return _exit_code(answer)


def _exit_code(answer: Answer) -> int:
    if answer.is_good:
        return 0
    complain(answer.complaint)
    return 1


def _nowhere(text: str) -> None:
    pass


def converse(client: ApiClient, wish: Wish) -> int:
    """Read lines and answer them until the end; the model sees the whole conversation each time."""
    model = client.model(wish.model)
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (line editing for input())
    remark(f"{model['id']}: /help for help, /bye to leave")
    messages: list[JsonObject] = []
    while (line := _read_message()) is not None:
        match line.strip():
            case "":
                continue
            case "/bye" | "/exit" | "/quit":
                break
            case "/help" | "/?":
                say(HELP)
            case "/clear":
                messages.clear()
                remark("Forgotten.")
            case command if command.startswith("/") and " " not in command:
                complain(f"There is no {command}; /help shows what there is.")
            case _:
                _take_turn(client, wish, messages, line)
    return 0


def _take_turn(client: ApiClient, wish: Wish, messages: list[JsonObject], line: str) -> None:
    messages.append({"role": "user", "content": line})
    try:
        answer = stream_answer(client, wish.body(messages), write_text)
    except Interrupted as interruption:
        write_text("\n")
        remark("Stopped.")
        messages.append({"role": "assistant", "content": interruption.text})
        return
    except ApiRefused as error:
        messages.pop()
        complain(str(error))
        return
    write_text("\n")
    if answer.is_good:
        messages.append({"role": "assistant", "content": answer.text})
    else:
        messages.pop()
        complain(answer.complaint)


def _read_message() -> str | None:
    """The next message; None at the end of input."""
    lines: list[str] = []
    is_block = False
    while True:
        try:
            line = input("... " if is_block else ">>> ")
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print()
            remark("Ctrl-D or /bye leaves.")
            lines, is_block = [], False
            continue
        if line.strip() == '"""':
            if is_block:
                return "\n".join(lines)
            is_block = True
        elif is_block:
            lines.append(line)
        else:
            return line


def piped_prompt() -> str | None:
    """Standard input when it is no terminal."""
    return None if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read()
