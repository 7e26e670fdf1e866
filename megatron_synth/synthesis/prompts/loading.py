"""Read a prompt file, and fill in its fields."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import Field

from megatron_synth.config import Config, ConfigError, parse_config
from megatron_synth.engines.requests import join_system
from megatron_synth.runs import hash_json
from megatron_synth.synthesis.answers import FORMS

_FOLDER = Path(__file__).parent
_FILE = re.compile(r"\A---\n(?P<header>.*?\n)---\n(?P<body>.*)\Z", re.DOTALL)
_FIELD = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_HASH_DIGITS = 12


class PromptHeader(Config):
    """What stands between the two lines of dashes."""

    name: str = Field(pattern=r"^\w[\w-]*$")
    """Recorded with every document."""
    version: int = Field(ge=1)
    """Raised by whoever changes the wording; the content hash tells what was really asked."""
    answer: str
    """Form of the answer: a name in `answers.FORMS`."""
    system: str | None = None
    """System message; goes as such where the model's chat form has one."""


@dataclass(frozen=True)
class Prompt:
    """A prompt.

    Attributes:
        name: As its file says.
        version: As its file says.
        answer: Form of the answer, a name in `answers.FORMS`.
        body: With its fields unfilled.
        fields: Names of the fields in the body.
        system: System message that goes before the body; it has no fields.
    """

    name: str
    version: int
    answer: str
    body: str
    fields: frozenset[str]
    system: str | None = None

    @property
    def identity(self) -> str:
        """`name@hash`: what goes into a document's provenance. The hash is of the content."""
        content = [self.body, self.answer, *([self.system] if self.system else [])]
        return f"{self.name}@{hash_json(content)[:_HASH_DIGITS]}"

    @property
    def wording(self) -> str:
        """System message and body, the fields unfilled: all words that are ours."""
        return join_system(self.system, self.body)

    def fill(self, values: Mapping[str, str]) -> str:
        """The request's text. Each value is put in once, as it is: braces in it mean nothing.

        Raises:
            KeyError: A field has no value.
        """
        return _FIELD.sub(lambda found: values[found[1]], self.body)


def prompt_names() -> list[str]:
    """Names of the prompts that come with the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.md"))


def load_prompt(source: str | Path, fields: frozenset[str]) -> Prompt:
    """Read a prompt and see that its method can fill it in.

    Args:
        source: A name of `prompt_names()`, or a file.
        fields: The fields that its method fills in; the body must use just these.

    Raises:
        ConfigError: See `read_prompt`; or a field too many or too few.
    """
    prompt = read_prompt(source)
    if prompt.fields != fields:
        shown = {name: "{{" + name + "}}" for name in prompt.fields | fields}
        missing = ", ".join(shown[name] for name in sorted(fields - prompt.fields))
        unknown = ", ".join(shown[name] for name in sorted(prompt.fields - fields))
        said = [f"it lacks {missing}"] * bool(missing) + [f"nothing fills {unknown}"] * bool(
            unknown
        )
        raise ConfigError(f"the prompt's fields are wrong: {'; '.join(said)}", where=source)
    return prompt


def read_prompt(source: str | Path) -> Prompt:
    """Read a prompt that comes with the package, by name, or a user's own file, by path.

    Args:
        source: A name of `prompt_names()`, or a file.

    Raises:
        ConfigError: No such prompt; a header that is missing or wrong; an unknown form of answer.
    """
    path = _FOLDER / f"{source}.md" if isinstance(source, str) else source
    if not path.is_file():
        names = ", ".join(prompt_names())
        raise ConfigError(f"there is no prompt {source}", fix=f"There are: {names}, or a file.")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the prompt cannot be read: {error}", where=path) from error
    found = _FILE.match(text.replace("\r\n", "\n"))
    if not found:
        raise ConfigError(
            "the prompt file has no header",
            where=path,
            fix="It begins with a line ---, then name, version and answer, then a line ---.",
        )
    header = _header(found["header"], path)
    body = found["body"].strip("\n")
    used = frozenset(_FIELD.findall(body))
    return Prompt(header.name, header.version, header.answer, body, used, header.system)


def _header(text: str, path: Path) -> PromptHeader:
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"the prompt's header is not YAML: {error}", where=path) from error
    if not isinstance(tree, dict):
        raise ConfigError("the prompt's header is no mapping", where=path)
    header = parse_config(tree, PromptHeader, where=str(path))
    if header.answer not in FORMS:
        raise ConfigError(
            f"no parser for answers of the form {header.answer!r}",
            where=path,
            fix=f"Forms: {', '.join(sorted(FORMS))}.",
        )
    return header
