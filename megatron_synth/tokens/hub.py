"""A tokenizer by its name on the hub."""

from pathlib import Path

from megatron_synth.config import DataError


def fetch_tokenizer(name: str) -> Path:
    """The local folder of a hub tokenizer, from the cache or fetched now.

    Raises:
        DataError: `name` is no folder, and the hub does not have it or cannot be reached.
    """
    fix = (
        "Give an existing folder with tokenizer.json. On machines without a hub, fetch the "
        "tokenizer where there is one and copy its folder."
    )
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise DataError("no such folder", where=name, fix=fix)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        hf_hub_download(name, "tokenizer_config.json", etag_timeout=10)
        return Path(hf_hub_download(name, "tokenizer.json", etag_timeout=10)).parent
    except (OSError, ValueError, RuntimeError, HfHubHTTPError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"no such folder, and not to be had from the hub: {reason}", where=name, fix=fix
        ) from error
