"""A text prompt as the user's message of a chat, in the form that a model was tuned on.

The model folder's own chat template is rendered once, around a placeholder. Its control tokens
are then recognised in the template's text alone; what stands in the placeholder's place, a prompt
with a document in it, is encoded as ordinary text, so that no document can end the user's turn or
begin another one. A system message is part of what is rendered; where the template has no place
for one, its text stands before the user's, in one message.
"""

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from megatron_synth.config import ConfigError, DataError
from megatron_synth.engines.requests import join_system
from megatron_synth.runs import get_logger, hash_json
from megatron_synth.tokens import Tokenizer
from megatron_synth.tokens.special import Spellings
from megatron_synth.tokens.tokenizer_config import CONFIG, read_json_object, token_of

_LOG = get_logger(__name__)

_TEMPLATE = "chat_template.jinja"
_GENERATION = "generation_config.json"
_TODAY = datetime(2024, 7, 26)  # what Llama 3's templates take where there is no clock
_PLACEHOLDER = "@@the-prompt-stands-here@@"
_SYSTEM = "@@the-system-message-stands-here@@"


class ChatForm:
    """Makes token ids of prompts.

    Args:
        template: Jinja, as `transformers` reads it.
        tokenizer: The model's.
        names: What the template may use besides the message, such as `bos_token`.
        stop_ids: Tokens that end the model's turn.
        where: For messages.

    Raises:
        ConfigError: The template cannot be rendered, or does not hold the message just once.
    """

    def __init__(
        self,
        template: str,
        tokenizer: Tokenizer,
        names: Mapping[str, Any],
        stop_ids: frozenset[int],
        where: Path,
    ) -> None:
        self.stop_ids = stop_ids
        self._tokenizer = tokenizer
        self._template = template
        self._names = names
        self._where = where
        self._plain = _Frame(template, tokenizer, names, None, where)
        self._frames: dict[str, _Frame | None] = {}

    @property
    def fingerprint(self) -> str:
        """Hash of what this form adds to a prompt and of what ends an answer."""
        with_system = self._make_frame(_SYSTEM)
        return hash_json(
            [
                self._plain.identity,
                with_system.identity if with_system else None,
                sorted(self.stop_ids),
            ]
        )

    def encode(self, prompt: str, system: str | None = None) -> list[int]:
        """Ids of the whole chat up to where the model's answer begins.

        Args:
            prompt: The user's message.
            system: The system's message before it. Where the template refuses or drops one, or
                where the text spells a control token, it stands before the user's instead.
        """
        if not system:
            return self._plain.encode(prompt)
        if system not in self._frames:
            self._frames[system] = frame = self._make_frame(system)
            if frame is None:
                _LOG.info(
                    "the chat template of %s takes no system message: its text stands before "
                    "the user's",
                    self._where,
                )
        frame = self._frames[system]
        if frame is None:
            return self._plain.encode(join_system(system, prompt))
        return frame.encode(prompt)

    def _make_frame(self, system: str) -> "_Frame | None":
        """None where a system message has no place."""
        if self._tokenizer.find_special(system) is not None:
            return None
        try:
            frame = _Frame(self._template, self._tokenizer, self._names, system, self._where)
        except ConfigError:  # "System role not supported", say
            return None
        return frame if frame.holds(system) else None


class _Frame:
    """What a template puts around the user's message, for one system message or none."""

    def __init__(
        self,
        template: str,
        tokenizer: Tokenizer,
        names: Mapping[str, Any],
        system: str | None,
        where: Path,
    ) -> None:
        self._tokenizer = tokenizer
        self._before, self._after = _render_around(template, _PLACEHOLDER, names, system, where)
        self._left, self._right = _trimmed(
            template, names, system, where, self._before, self._after
        )
        # Up to its last control token the template's beginning is the same for every prompt; the
        # ordinary text behind it may share a token with the prompt's own first characters.
        pieces = list(Spellings(tokenizer.special_spellings).cut(self._before))
        self._lead = pieces[-1] if pieces and isinstance(pieces[-1], str) else ""
        pieces = list(Spellings(tokenizer.special_spellings).cut(self._after))
        self._trail = pieces[0] if pieces and isinstance(pieces[0], str) else ""
        head = self._before.removesuffix(self._lead) if self._lead else self._before
        tail = self._after.removeprefix(self._trail)
        self._head, self._tail = tokenizer.encode_batch([head, tail], keep_special=True)
        self._controls = self._control_ids([*self._head, *self._tail])

    @property
    def identity(self) -> list[Any]:
        """What it adds to a prompt."""
        return [self._before, self._after, self._left, self._right]

    def holds(self, system: str) -> bool:
        """Whether the system's message stands in it."""
        return system.strip() in f"{self._before}{self._after}"

    def encode(self, prompt: str) -> list[int]:
        """Ids of the whole chat around `prompt`."""
        if self._left:
            prompt = prompt.lstrip()
        if self._right:
            prompt = prompt.rstrip()
        middle = f"{self._lead}{prompt}{self._trail}"
        if self._tokenizer.find_special(middle) is None:
            # As transformers does it. The check is for tokenizers which also take other
            # spellings, normalised, for control tokens.
            text = f"{self._before}{prompt}{self._after}"
            ids = self._tokenizer.encode_batch([text], keep_special=True)[0]
            if self._control_ids(ids) == self._controls:
                return ids
        return [*self._head, *self._tokenizer.encode(middle), *self._tail]

    def _control_ids(self, ids: list[int]) -> list[int]:
        return [i for i in ids if i in self._tokenizer.special_ids]


def read_chat_form(
    folder: Path,
    tokenizer: Tokenizer,
    chat: bool | None = None,
    options: Mapping[str, Any] | None = None,
) -> ChatForm | None:
    """The chat form of a model; None where prompts are to go as they are.

    Args:
        folder: The model's; holds `chat_template.jinja`, or `tokenizer_config.json` with a
            template.
        tokenizer: The model's.
        chat: False: as they are. True: there must be a template. None: as the folder has it.
        options: Switches of the template, such as `enable_thinking`.

    Raises:
        ConfigError: `chat` is True and there is no template, or the template cannot be used.
        DataError: A file is damaged.
    """
    template = None if chat is False else _read_template(folder)
    if template is None:
        if chat:
            raise ConfigError(
                "the model has no chat template, and engine.chat is true",
                where=folder,
                fix="Use an instruction-tuned model, or set engine.chat=false to send prompts as "
                "plain text.",
            )
        if chat is None:
            _LOG.info("%s has no chat template: text prompts go as they are", folder)
        return None
    names = {**_special_names(folder), **(options or {})}
    return ChatForm(template, tokenizer, names, _stop_ids(folder, tokenizer), folder)


def _read_template(folder: Path) -> str | None:
    """The template for an ordinary chat, wherever transformers would find it."""
    try:
        return (folder / _TEMPLATE).read_text(encoding="utf-8")
    except FileNotFoundError:
        pass
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"cannot be read: {error}", where=folder / _TEMPLATE) from error
    found = _object(folder / CONFIG).get("chat_template")
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found}
        found = named.get("default")
    if found is not None and not isinstance(found, str):
        raise DataError("chat_template is no text", where=folder / CONFIG)
    return found


def _special_names(folder: Path) -> dict[str, str]:
    """`bos_token` and its like, as templates use them."""
    config = {**_object(folder / "special_tokens_map.json"), **_object(folder / CONFIG)}
    names = {role: token_of(config, role) for role in config if role.endswith("_token")}
    return {role: token for role, token in names.items() if isinstance(token, str)}


def _stop_ids(folder: Path, tokenizer: Tokenizer) -> frozenset[int]:
    """EOS as the generation config has it (a chat model may end with several), and our own."""
    found = _object(folder / _GENERATION).get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(isinstance(i, int) and i >= 0 for i in ids):
        raise DataError(f"eos_token_id is {json.dumps(found)}", where=folder / _GENERATION)
    return frozenset([*ids, tokenizer.eos_id])


def _object(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path)
    except FileNotFoundError:
        return {}


def _render_around(
    template: str, content: str, names: Mapping[str, Any], system: str | None, where: Path
) -> tuple[str, str]:
    """What the template puts before and after the placeholder in `content`."""
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": content})
    try:
        # A sandbox: a template sees its arguments and nothing else.
        rendered, _ = render_jinja_template(
            [messages],
            chat_template=template,
            add_generation_prompt=True,
            # The same prompt on every day: a run may go on tomorrow.
            **{"strftime_now": _TODAY.strftime, **names},
        )
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise ConfigError(
            f"the chat template cannot be rendered for one user message: {error}",
            where=where,
            fix="Set engine.chat=false to send prompts as plain text, or mend the template.",
        ) from error
    parts = rendered[0].split(_PLACEHOLDER)
    if len(parts) != 2:
        raise ConfigError(
            f"the chat template holds the user's message {len(parts) - 1} times, not once",
            where=where,
            fix="Set engine.chat=false to send prompts as plain text.",
        )
    return parts[0], parts[1]


def _trimmed(
    template: str,
    names: Mapping[str, Any],
    system: str | None,
    where: Path,
    before: str,
    after: str,
) -> tuple[bool, bool]:
    """Whether the template takes away white space on the left and right of a message."""
    spaced = _render_around(template, f"\n {_PLACEHOLDER} \n", names, system, where)
    return spaced[0] != f"{before}\n ", spaced[1] != f" \n{after}"
