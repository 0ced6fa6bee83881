"""Tools: plain functions that a model may call, and what comes of its calls.

A tool is a function with typed arguments and a docstring in Google's style; the chat template shows the model its
name, arguments and docstring. What a tool raises is given to the model as the tool's answer; it never reaches the
trainer.
"""

import ast
import asyncio
import inspect
import operator
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Protocol, runtime_checkable

from transformers import PreTrainedTokenizerBase
from transformers.utils import DocstringParsingException, TypeHintParsingException, get_json_schema

from utils.config import Config, UserError, choose, describe_error, import_dotted
from utils.files import say

SIGNS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
LONGEST = 200  # characters of an expression; with no powers to be had, its result is not much longer


def calculator(expression: str) -> str:
    """Work out a sum.

    Args:
        expression: The sum, for example 12 + 7

    Returns:
        Its result
    """
    if len(expression) > LONGEST:
        raise ValueError(f"the expression has more than {LONGEST} characters")
    text = expression.replace("x", "*").replace("×", "*").replace("÷", "/")
    try:
        result = work_out(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError("this is not a sum") from None
    except ZeroDivisionError:
        raise ValueError("division by 0") from None
    return str(result) if result.denominator == 1 else f"{float(result):.10g}"


def work_out(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return Fraction(str(number))
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in SIGNS:
            return SIGNS[type(sign)](work_out(left), work_out(right))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -work_out(operand)
    raise ValueError("only numbers, + - x / and brackets can be worked out")


TOOLS = {"calculator": calculator}


@runtime_checkable
class Environment(Protocol):
    """What a rollout can be started in."""

    def reset(self, **row: object) -> str | None: ...


@runtime_checkable
class Scoring(Protocol):
    """An environment that gives the reward itself."""

    def get_reward(self) -> float: ...


@dataclass
class Toolbox:
    """What the model may call: tools, and the methods of an environment, one environment a rollout.

    An environment is a class as TRL takes it: `reset(**row)` begins, and what it returns is put after the prompt;
    other public methods are tools; `get_reward()`, if there is one, scores. A mapping of several is chosen from by a
    row's column `environment`. Environments may be containers or browsers: each is built once and reset often, and
    no more are built than rollouts are open at a time.

    Attributes:
        scores: whether an environment gives rewards itself.
        idle: by name, the environments that no rollout uses.
        in_use: the names of the others, by id.
    """

    tools: list[Callable]
    environment_factory: Callable | dict[str | None, Callable] | None = None
    scores: bool = False
    idle: dict[str | None, list[Environment]] = field(default_factory=dict)
    in_use: dict[int, str | None] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.tools or self.environment_factory)

    def open(self, row: dict, prompt: list[dict]) -> tuple[list[dict], list[Callable], Environment | None]:
        """(prompt, what may be called, environment) of one row; the environment is to be released."""
        if self.environment_factory is None:
            return prompt, self.tools, None
        name, factory = self.choose_factory(row)
        waiting = self.idle.setdefault(name, [])
        environment = waiting.pop() if waiting else factory()
        self.in_use[id(environment)] = name
        try:
            observation = environment.reset(
                **{key: value for key, value in row.items() if name is None or key != "environment"}
            )
        except BaseException:
            self.release([environment])
            raise
        if observation is not None:
            prompt = [*prompt[:-1], prompt[-1] | {"content": prompt[-1]["content"] + observation}]
        return prompt, self.tools + methods_of(environment), environment

    def tools_shown(self, row: dict) -> list[Callable]:
        """What may be called for a row, without a reset: for looking at prompts before there is a rollout."""
        if self.environment_factory is None:
            return self.tools
        name, factory = self.choose_factory(row)
        waiting = self.idle.setdefault(name, [])
        if not waiting:
            waiting.append(factory())
        return self.tools + methods_of(waiting[0])

    def release(self, environments: Iterable[Environment | None]) -> None:
        """Their rollouts are over and scored: the next ones may use them."""
        for environment in environments:
            if environment is not None:
                self.idle[self.in_use.pop(id(environment))].append(environment)

    def choose_factory(self, row: dict) -> tuple[str | None, Callable]:
        factory = self.environment_factory
        if factory is None or not isinstance(factory, dict):
            return None, factory or Environment
        if row.get("environment") not in factory:
            raise UserError(
                f"environment_factory: a row's column `environment` is {row.get('environment')!r}, and there are: "
                f"{', '.join(map(str, factory))}"
            )
        return row["environment"], factory[row["environment"]]


def methods_of(environment: object) -> list[Callable]:
    """Its public methods but reset and get_reward; listed on the class, since looking at the object
    would run its properties.
    """
    methods = inspect.getmembers(type(environment), inspect.isfunction)
    kept = [(name, method) for name, method in methods if name not in ("reset", "get_reward")]
    return [method.__get__(environment) for name, method in kept if not name.startswith("_")]


def call_tools(message: dict, tools: list[Callable]) -> list[dict]:
    """The tool messages that answer an assistant's tool calls; an error is one of them, as TRL writes it."""
    by_name = {tool.__name__: tool for tool in tools}
    at_once: list[dict] = []
    later: list[dict] = []
    for call in message["tool_calls"]:
        function = call.get("function", call)
        name = function["name"]
        came = at_once
        try:
            if name not in by_name:
                raise ValueError(f"Tool {name} not found.")
            result = by_name[name](**function["arguments"])
            if inspect.isawaitable(result):
                result, came = asyncio.run(awaited(result)), later  # TRL puts what it waits for last
        except Exception as error:  # the user's function, on the model's arguments: what it raises is its answer
            result = {"error": str(error)}
            report_once(name, error)
        content = result if isinstance(result, list) else str(result)
        came.append({"role": "tool", "name": name, "content": content})
    return at_once + later


async def awaited(result: Awaitable[object]) -> object:
    return await result


REPORTED: set[str] = set()


def report_once(name: str, error: Exception) -> None:
    """What a user's own tool raises is given to the model; since it may be a bug, it is printed once a place."""
    text = describe_error(error)
    if text not in REPORTED and " at " in text:  # with a place: not one of ours
        REPORTED.add(text)
        say("WARNING", f"the tool {name} raised an error, which is given to the model as its answer: {text}")


def tool_suffix(tokenizer: PreTrainedTokenizerBase, answered: list[dict], settings: dict) -> list[int]:
    """The tokens of tool messages after an assistant's turn that ended with EOS, up to where the assistant goes on."""
    call = {"type": "function", "function": {"name": answered[0]["name"], "arguments": {}}}
    before = [{"role": "user", "content": "-"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    render = {"tokenize": True, "return_dict": False} | settings
    head = tokenizer.apply_chat_template(before, **render)
    whole = tokenizer.apply_chat_template([*before, *answered], add_generation_prompt=True, **render)
    ends = [place for place, token in enumerate(head) if token == tokenizer.eos_token_id]
    head = head[: ends[-1] + 1] if ends else head
    if whole[: len(head)] != head:
        raise ValueError("the chat template renders a turn differently when another follows, so turns cannot be added")
    return whole[len(head) :]


def load_toolbox(config: Config) -> Toolbox:
    """What `tools` and `environment_factory` name. Raises UserError if there is no such function or class."""
    tools, named = load_tools(config.recipe.tools), config.recipe.environment_factory
    paths = named if isinstance(named, dict) else {None: named} if named else {}
    factories = {name: import_dotted("environment_factory", path) for name, path in paths.items()}
    first = {name: [build_environment(paths[name], factory)] for name, factory in factories.items()}
    scores = any(isinstance(environment, Scoring) for (environment,) in first.values())
    return Toolbox(tools, factories if isinstance(named, dict) else factories.get(None), scores, first)


def load_tools(names: list[str]) -> list[Callable]:
    """Tools of this file by their names, others by their dotted paths, each fit to be shown to a model."""
    found = [
        import_dotted("tools", name) if "." in name else choose("tools", name, TOOLS, "utils/generation/tools.py")
        for name in names
    ]
    for tool in found:
        check_tool(tool)
    return found


def check_tool(tool: Callable) -> None:
    try:
        get_json_schema(tool)
    except (DocstringParsingException, TypeHintParsingException) as error:
        raise UserError(
            f"tools: {tool.__name__} cannot be shown to the model: {' '.join(str(error).split())} Give it types, and "
            "a docstring with Args:, as utils/generation/tools.py has them"
        ) from None


def build_environment(path: str, factory: Callable) -> Environment:
    """The first environment of a factory. Raises UserError if it cannot be built, begun or called."""
    try:
        environment = factory()
    except Exception as error:  # the user's class
        raise UserError(
            f"environment_factory: {path} cannot be built without arguments. {describe_error(error)}"
        ) from error
    if not isinstance(environment, Environment):
        raise UserError(f"environment_factory: {path} has no method reset(**row), with which a rollout begins")
    for method in methods_of(environment):
        check_tool(method)
    return environment
