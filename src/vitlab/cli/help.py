"""`--help` of a program: its settings and groups; `--help TOPIC`: one group, node or setting. No torch is imported."""

import inspect
import re
import shutil
import signal
import sys
import textwrap
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from vitlab.cli import arguments
from vitlab.cli.checks import Program
from vitlab.cli.settings import ProgramSettings, Setting
from vitlab.config import paths
from vitlab.config.printable import printable
from vitlab.jobs.compose import initialize_hydra

SWEEP_FLAG = ("-m KEY=A,B GROUP=C,D", "one run for each combination of values")
FLAGS = (
    ("--help TOPIC", "the settings of one group, node or key"),
    ("--cfg job --resolve", "print the resolved configuration, start nothing"),
    ("--config-dir DIR", "a folder with more options, laid out as conf/"),
    ("--version", "print vitlab's version"),
)
MAX_WIDTH = 120


def show_help(program: Program, flags: Namespace) -> int:
    """Print the help that a command line asks for. Returns the exit status: 2 for a topic that doesn't exist."""
    topics = [word for word in flags.overrides if "=" not in word and not word.startswith("~")]
    overrides = [word for word in flags.overrides if word not in topics]
    with initialize_hydra(flags):
        try:
            values = arguments.single_values(overrides, multirun=flags.multirun)
            settings = ProgramSettings(program, flags.config_name or program.name, values)
        except (HydraException, OmegaConfBaseException) as error:
            print(printable(f"{program.name} --help: {error}"), file=sys.stderr)
            return 2
        label = "value" if overrides else "default"
        lines = [] if topics else [*overview(program, settings, label)]
        for topic in topics:
            about = [*topic_lines(settings, topic, label)]
            if not about:
                names = settings.closest(topic) or [*settings.groups, *(setting.path for setting in settings.root())]
                closest = f"no group or setting has this name; the closest: {', '.join(names)}"
                print(printable(wrap(f"{program.name} --help {topic}: {closest}")), file=sys.stderr)
                return 2
            lines += about
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # | head
        print("\n".join(lines).lstrip("\n"), file=sys.stdout)
    return 0


def overview(program: Program, settings: ProgramSettings, label: str) -> Iterator[str]:
    """The lines of a program's help."""
    paragraphs, examples = split_docstring(program.function.__globals__["__doc__"] or "")
    for paragraph in paragraphs:
        yield from (wrap(paragraph), "")
    command, groups = paths.COMMAND.format(program.name), settings.groups
    yield from (wrap(f"Usage: {command} {'[GROUP=OPTION ...] ' if groups else ''}[KEY=VALUE ...]"), "")
    yield f"Settings, with their types and {label}s:"
    for setting in settings.root():
        yield from entry(setting, label)
    if groups:
        yield from ("", wrap(f"Groups, with their options; {command} --help GROUP shows the settings of one:"))
    for group, options in groups.items():
        chosen = settings.choice(group) if "/" not in group or settings.choice(group) != "null" else ""
        listed = ", ".join(options) or f"no options, only the settings {group}.KEY"
        yield wrap(f"{group}: {listed}" + (f"; {label}: {chosen}" if options and chosen else ""), 2, 6)
        if line := settings.line(group):
            yield wrap(line, 6)
    yield from ("", "Flags:")
    for flag, text in (SWEEP_FLAG, *FLAGS) if "hydra/sweeper" in groups or " -m " in str(examples) else FLAGS:
        yield wrap(f"{flag:<21} {text}", 2, 24)
    if examples:
        yield from ("", "Examples:", *examples)


def topic_lines(settings: ProgramSettings, topic: str, label: str) -> Iterator[str]:
    """The lines about a group, a node or a setting; none if there is nothing of this name."""
    is_group, path = topic in settings.groups, topic.replace("/", ".")
    if is_group:
        line = settings.line(topic)
        yield from (wrap(f"{topic}: {line}" if line else topic), "")
        for option in settings.groups[topic]:
            chosen = f" ({label})" if option == settings.choice(topic) else ""
            yield wrap(f"{option + chosen:<20} {option_text(topic, option)}", 2, 23).rstrip()
    nodes = settings.nodes(path) if is_group or not path.startswith("hydra") else {}
    for node, target in nodes.items():
        yield from ("", wrap(f"Settings of {node} ({target}), with their types and {label}s:"))
        for setting in settings.of_node(node, target):
            yield from entry(setting, label)
    if not is_group and not nodes:
        for setting in settings.all():
            if setting.path == topic:
                yield from entry(setting, label)


def entry(setting: Setting, label: str) -> Iterator[str]:
    value = setting.value if setting.value == "required" else f"{label}: {setting.value}"
    yield wrap(f"{setting.path}: {setting.kind}; {value}", 2, 6)
    if setting.line:
        yield wrap(setting.line, 6)


def option_text(group: str, option: str) -> str:
    """The comment at the top of an option's file, and its values if it sets a few of another node."""
    file = paths.EXPERIMENTS / f"{option}.yaml" if group == "experiment" else paths.CONF / group / f"{option}.yaml"
    if not Path(file).is_file():
        return ""
    text = file.read_text()
    package, text = re.findall(r"\A# @package (\w+)\n", text), re.sub(r"\A# @package.*\n", "", text)
    comment = re.match(r"(?:# .*\n)*", text)
    words = " ".join(line.lstrip("# ") for line in comment[0].splitlines()) if comment else ""
    values = re.findall(r"^(\w+): ([^#\n]+)", text, re.MULTILINE) if package and "_global_" not in package else []
    return ": ".join(part for part in (words, " ".join(f"{key}={value.strip()}" for key, value in values)) if part)


def split_docstring(docstring: str) -> tuple[list[str], list[str]]:
    """The paragraphs of a program's docstring and its examples, with commands as this installation has them."""
    text = re.sub(r"python src/(\w+)\.py", lambda name: paths.COMMAND.format(name[1]), inspect.cleandoc(docstring))
    blocks = re.split(r"\n{2,}", text)
    paragraphs = [" ".join(block.split()) for block in blocks if not block.startswith("    ")]
    return paragraphs, [line[2:] for block in blocks if block.startswith("    ") for line in block.splitlines()]


def wrap(text: str, indent: int = 0, later: int | None = None) -> str:
    """Wrap text to the terminal's width; its first line is indented by `indent`, the others by `later`."""
    width = min(shutil.get_terminal_size().columns, MAX_WIDTH)
    first, rest = " " * indent, " " * (indent if later is None else later)
    return textwrap.fill(text, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)
