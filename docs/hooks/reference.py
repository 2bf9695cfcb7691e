"""Parts of the reference that are made from the code: the commands, and the manifest's fields.

A page asks for them with ``<!-- made: commands -->`` and the like.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any

__all__ = ["commands", "extensions", "manifest", "on_page_markdown"]

_MADE = re.compile(r"^<!-- made: (\w+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs with the text of every page."""
    makers = {"commands": commands, "extensions": extensions, "manifest": manifest}
    return _MADE.sub(lambda asked: makers[asked.group(1)](), markdown)


def commands() -> str:
    """Every command of the Typer app: what it does, its usage, its arguments and options."""
    from typer.main import get_command

    from crossfuse.cli import app

    group: Any = get_command(app)
    with group.make_context("crossfuse", [], resilient_parsing=True) as context:
        parts = [
            _command(n, group.get_command(context, n), context) for n in _names(group, context)
        ]
        parts.append("## crossfuse")
        parts += (_definitions(title, panel) for title, panel in _panels(group, context).items())
    return "\n\n".join(parts)


def extensions() -> str:
    """The public names by which others extend crossfuse, for mkdocstrings."""
    import crossfuse

    names = [n for n in crossfuse.__all__ if n == "Target" or n.startswith("register_")]
    return "\n\n".join(f"::: crossfuse.{name}" for name in names)


def _names(group: Any, context: Any) -> list[str]:
    names: list[str] = group.list_commands(context)
    return names


def _command(name: str, command: Any, parent: Any) -> str:
    with command.make_context(name, [], parent=parent, resilient_parsing=True) as context:
        given = [_argument(p) for p in command.get_params(context) if not _is_option(p)]
        usage = " ".join(("crossfuse", name, *given, "[OPTIONS]"))
        told = [_linked(paragraph) for paragraph in _paragraphs(command.help or "")]
        example = (getattr(command, "epilog", None) or "").removeprefix("Example: ")
        shown = f"{usage}\n\n{example}" if example else usage
        parts = [f"## crossfuse {name}", *told, f"```text\n{shown}\n```"]
        parts += (_definitions(title, panel) for title, panel in _panels(command, context).items())
    return "\n\n".join(parts)


def _linked(text: str) -> str:
    """The text with links to the pages that it names."""
    return re.sub(r"\bdocs/([\w/-]+)\.md\b", r"[\1](../\1.md)", text)


def _is_option(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "option")


def _argument(parameter: Any) -> str:
    name = parameter.metavar or str(parameter.name).upper()
    return name if parameter.required else f"[{name}]"


def _panels(command: Any, context: Any) -> dict[str, list[tuple[str, str]]]:
    """Arguments and options, by the panel that ``--help`` shows them in."""
    found: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is None or "--help" in parameter.opts:
            continue
        usual = "Options" if _is_option(parameter) else "Arguments"
        title = getattr(parameter, "rich_help_panel", None) or usual
        label, told = record
        name = _typed(label) if _is_option(parameter) else _argument(parameter).strip("[]")
        found.setdefault(title, []).append((name, _said(told)))
    return found


_KINDS = {"int": "NUMBER", "float": "NUMBER", "path": "PATH"}
_RANGE = re.compile(r"(?:(?P<min>[\d.]+)<=)?x(?:<=(?P<max>[\d.]+)|>=(?P<least>[\d.]+))?")


def _typed(label: str) -> str:
    """A label without the parser's own names of types: ``--seed NUMBER``."""
    plain = re.sub(r"<([^>]*\|[^>]*)>", r"\1", label)
    plain = re.sub(r"<(?:list\[)?(\w+)[^>]*>", lambda m: _KINDS.get(m[1], "TEXT"), plain)
    return " ".join(plain.split())


def _said(told: str) -> str:
    """What an option does, with what the parser adds in brackets put into words."""
    text, _, more = told.partition("  [")
    sentences = [text if text.endswith((".", "!", "?")) else f"{text}."]
    for part in filter(None, more.rstrip("]").split("; ")):
        bounds = _RANGE.fullmatch(part)
        if part.startswith("default: "):
            sentences.append(f"Default: `{part.removeprefix('default: ')}`.")
        elif bounds and bounds["max"]:
            sentences.append(f"From {bounds['min']} to {bounds['max']}.")
        elif bounds:
            sentences.append(f"At least {bounds['least']}.")
        else:
            sentences.append(f"{part[:1].upper()}{part[1:]}.")
    return " ".join(sentences)


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        yield " ".join(paragraph.split())


def _definitions(title: str, entries: Any) -> str:
    listed = "\n\n".join(f"`{name}`\n:   {told}" for name, told in entries)
    return f"**{title}**\n\n{listed}"


def manifest() -> str:
    """The fields of ``manifest.json``, from its JSON Schema."""
    text = files("crossfuse.bundle").joinpath("manifest.schema.json").read_text("utf-8")
    schema = json.loads(text)
    parts = [_fields("Top level", schema)]
    parts += [_fields(f"`{name}`", one) for name, one in schema["$defs"].items() if _has(one)]
    return "\n\n".join(parts)


def _has(schema: Mapping[str, Any]) -> bool:
    return "properties" in schema


def _fields(title: str, schema: Mapping[str, Any]) -> str:
    required = set(schema.get("required", ()))
    about = schema.get("description", "")
    rows = "\n".join(
        f"- {_field(name, one, name in required)}" for name, one in schema["properties"].items()
    )
    return "\n\n".join(filter(None, (f"## {title}", about, rows)))


def _field(name: str, schema: Mapping[str, Any], required: bool) -> str:
    kind = _kind(schema) + ("" if required else ", optional")
    told = schema.get("description", "") or _inside(schema)
    return f"`{name}` ({kind})" + (f": {told}" if told else "")


def _inside(schema: Mapping[str, Any]) -> str:
    """The fields of an object within a field, in words."""
    inner = schema.get("properties") or _each(schema).get("properties")
    if inner:
        return "Holds " + ", ".join(f"`{name}`" for name in inner) + "."
    if "enum" in schema:
        return "One of " + ", ".join(f"`{value}`" for value in schema["enum"]) + "."
    return ""


def _each(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    each = schema.get("additionalProperties", {})
    return each if isinstance(each, Mapping) else {}


def _kind(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(_kind(one) for one in schema["anyOf"])
    if "const" in schema:
        return f"always {schema['const']}"
    if "enum" in schema:
        return "one of a set"
    kind = schema.get("type", "anything")
    text = " or ".join(kind) if isinstance(kind, list) else str(kind)
    if kind == "array" and "items" in schema:
        return f"list of {_kind(schema['items'])}"
    if kind == "object" and _each(schema):
        return f"map to {_kind(_each(schema))}"
    return text
