"""Documents of a dataset on the hub, streamed."""

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any

from megatron_synth.config import DataError
from megatron_synth.corpus.document import BadRow, Document, from_record
from megatron_synth.corpus.quarantine import Quarantine

SCHEME = "hf://"

_NAME = re.compile(
    r"hf://(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[\w.-]+))?(?:@(?P<split>[\w.-]+))?"
)
_FIX = (
    "On a machine without a hub, give a JSONL or Parquet file instead; where there is one, check "
    "the name: hf://OWNER/NAME, hf://OWNER/NAME:CONFIG, hf://OWNER/NAME:CONFIG@SPLIT."
)
_REACH_SECONDS = 15.0


def read_hub(
    source: str, quarantine: Quarantine, *, text_column: str = "text", id_column: str = "id"
) -> Iterator[Document]:
    """Stream `hf://OWNER/NAME[:CONFIG][@SPLIT]` (split `train` by default).

    Raises:
        DataError: The name is malformed, the hub cannot be reached or has no such dataset, or
            the stream breaks off.
    """
    match = _NAME.fullmatch(source)
    if match is None:
        raise DataError("not the name of a hub dataset", where=source, fix=_FIX)
    rows = iter(_open(source, match["name"], match["config"], match["split"] or "train"))
    for number in itertools.count(1):
        try:
            record = next(rows)
        except StopIteration:
            return
        except _hub_errors() as error:
            raise DataError(
                f"the stream broke off after {number - 1:,} rows: {_first_line(error)}",
                where=source,
                fix="Run the same command again.",
            ) from error
        try:
            document = from_record(
                record,
                default_id=f"{match['name']}:{number}",
                text_column=text_column,
                id_column=id_column,
            )
        except BadRow as bad:
            quarantine.add(source, number, str(bad))
            continue
        quarantine.good += 1
        yield document


def _open(source: str, name: str, config: str | None, split: str) -> Iterable[Any]:
    try:
        from datasets import load_dataset
        from huggingface_hub import HfApi

        # One short question first: the library itself retries for minutes.
        HfApi().dataset_info(name, timeout=_REACH_SECONDS)
        dataset: Iterable[Any] = load_dataset(name, config, split=split, streaming=True)
        return dataset
    except ImportError as error:
        raise DataError(
            "hub datasets need the package `datasets`", where=source, fix="pip install datasets"
        ) from error
    except _hub_errors() as error:
        raise DataError(
            f"cannot be read from the hub: {_first_line(error)}", where=source, fix=_FIX
        ) from error


def _hub_errors() -> tuple[type[Exception], ...]:
    # The hub's own HTTP library, which is not the same one in all versions of it.
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    return (OSError, ValueError, RuntimeError, httpx.HTTPError, HfHubHTTPError)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
