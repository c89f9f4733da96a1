"""Hooks of mkdocs: pages that are files of the repository, the reference of commands, and the marks of blocks that tests run.

https://www.mkdocs.org/user-guide/configuration/#hooks
"""

from __future__ import annotations

import argparse
import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
# These are read where they lie in the repository, so that nothing is said twice.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "models/README.md": "explanation/models.md",
}
_LINK = re.compile(r"\[(?P<words>[^][]*)\]\((?P<to>[^()\s]+)\)")
_FENCE = re.compile(r"^(?P<fence>```\w+) .*$", re.MULTILINE)
_COMMANDS = "<!-- commands -->"

# mkdocs runs this file by its path, and the package is beside it.
sys.path.insert(0, str(ROOT))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie elsewhere in the repository."""
    for name, page in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=move_links(text, name, page)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Put in the commands, take out of fences what only tests read, and lead links out of docs to their pages."""
    if page.file.src_uri not in PAGES.values():
        markdown = move_links(markdown, f"docs/{page.file.src_uri}", page.file.src_uri)
    return hide_marks(markdown.replace(_COMMANDS, describe_commands()) if _COMMANDS in markdown else markdown)


def hide_marks(markdown: str) -> str:
    """Return a page whose fences name their language alone."""
    return _FENCE.sub(r"\g<fence>", markdown)


def move_links(markdown: str, name: str, page: str) -> str:
    """Return the text of a file of the repository with its links as they are from a page of the site.

    A link to a file that is no page becomes the file's name, because the repository has no address yet.
    """

    def move(found: re.Match[str]) -> str:
        to, _, anchor = found["to"].partition("#")
        if ":" in to or not to:
            return found[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(name), to))
        target = PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if target is None:
            return found["words"] if found["words"].startswith("`") else f"{found['words']} (`{path}`)"
        moved = posixpath.relpath(target, posixpath.dirname(page) or ".")
        return f"[{found['words']}]({moved}{'#' + anchor if anchor else ''})"

    return _LINK.sub(move, markdown)


def describe_commands() -> str:
    """Return the reference of all commands, in Markdown, from the parsers of the program."""
    from emotion_batch.cli.app import COMMANDS  # noqa: F401  (the commands are declared by its import)
    from emotion_batch.cli.options import make_parsers

    program, parsers, submitted = make_parsers()
    lines = ["## emotion-batch", "", *_describe(program)]
    for name, parser in parsers.items():
        lines += [f"## {name}", "", *_describe(parser)]
        if name == "submit":
            lines += [f"`submit` takes {', '.join(f'[`{one}`](#{one})' for one in submitted)}, with their options.", ""]
    return "\n".join(lines)


def _describe(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield f"{parser.description}"
    yield ""
    # Its groups have no public name.
    for group in parser._action_groups:
        actions = [one for one in group._group_actions if one.help != argparse.SUPPRESS]
        if not actions:
            continue
        title = group.title or ""
        yield from (f"**{title[:1].upper()}{title[1:]}**", "")
        for action in actions:
            if isinstance(action, argparse._SubParsersAction):
                for one in action._choices_actions:
                    yield from _define(f"[`{one.dest}`](#{one.dest})", one.help or "")
                continue
            names = action.option_strings or [str(action.metavar or action.dest)]
            value = _name_value(action) if action.option_strings else ""
            yield from _define(", ".join(f"`{name}{value}`" for name in names), _expand(action, parser))


def _define(term: str, words: str) -> Iterator[str]:
    escaped = re.sub(r"([*_<>|])", r"\\\1", words[:1].upper() + words[1:])
    yield from (term, f":   {escaped}", "")


def _name_value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    if action.choices and action.metavar is None:
        return f" {{{','.join(str(one) for one in action.choices)}}}"
    return f" {action.metavar or action.dest.upper()}"


def _expand(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    return (action.help or "") % {**vars(action), "prog": parser.prog}
