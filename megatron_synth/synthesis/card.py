"""The dataset card of a synthetic corpus, in Hugging Face's form: what it is, how it was made."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from megatron_synth.corpus import Document
from megatron_synth.runs import atomic_write
from megatron_synth.synthesis.config import SynthesisConfig
from megatron_synth.synthesis.filters import REASONS
from megatron_synth.synthesis.methods.defaults import PROMPTLESS

if TYPE_CHECKING:
    from megatron_synth.synthesis.megadocs import MegadocsConfig

CARD = "README.md"
_SAMPLES = 3
_SAMPLE_CHARACTERS = 1200
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))
_LARGER = ((10**7, "1M<n<10M"), (10**8, "10M<n<100M"), (10**9, "100M<n<1B"))

_INPUTS = {
    "seeds_too_long": "Source documents too long to be drawn",
    "inputs_cut": "Source documents of which the beginning was used",
    "inputs_chunked": "Source documents that were asked about in pieces",
    "inputs_skipped": "Source documents left out, too long",
    "inputs_too_short": "Source documents left out, too short",
}


def write_card(
    path: Path,
    config: SynthesisConfig,
    counts: Mapping[str, Any],
    documents: Iterable[Document],
    data_file: str,
) -> None:
    """Write the card; it is the same whenever the corpus is.

    Args:
        path: The file, usually `README.md` beside the documents.
        config: How they were made.
        counts: What `synthesize` counted.
        documents: The kept ones; the first few become samples.
        data_file: Name of the file that holds them.
    """
    samples = list(islice(documents, _SAMPLES))
    first = samples[0] if samples else None
    header = _header(
        f"Synthetic documents by {config.method}", [config.method], config, counts, data_file
    )
    facts = [
        ("Method", config.method),
        ("Generator", first.generator if first else None),
        ("Prompt", (first.prompt or "none: token ids alone") if first else None),
        ("Sampling", f"temperature {config.temperature:g}, top-p {config.top_p:g}"),
        ("Seed, round", f"{config.seed}, {config.round}"),
        ("Documents", f"{counts['documents']:,}"),
        ("Tokens, with one end of text a document", f"{counts['tokens']:,}"),
        ("Requests", f"{counts['requests']:,}"),
        ("Tokens generated for them", f"{counts['output_tokens']:,}"),
        ("Source documents", f"{counts['seeds']:,}" if counts["seeds"] else None),
        ("Generations of each", config.generations if config.method not in PROMPTLESS else None),
        *((_INPUTS[name], f"{counts[name]:,}") for name in _INPUTS if counts.get(name)),
    ]
    fields = (
        "Each row holds `text` and where it came from: `source_id`, `method`, `generation`, "
        "`round`, `generator`, `prompt`, `seed`, `sampling`, `finish_reason`, `token_counts`."
    )
    about = (
        "A language model wrote these documents. They can be wrong, biased, or made up, and they "
        "are meant for training language models, not as a source of facts."
    )
    filters = ["## Filters", "", *_filters(config, counts), ""]
    _write(path, header, about, facts, [fields, "", *filters], config.licence, samples)


def write_megadocs_card(
    path: Path,
    config: "MegadocsConfig",
    counts: Mapping[str, Any],
    documents: Iterable[Document],
    data_file: str,
) -> None:
    """Write the card of megadocs; see `write_card`.

    Args:
        path: The file, usually `README.md` beside the documents.
        config: How they were built.
        counts: What `build_megadocs` counted.
        documents: The megadocs; the first few become samples.
        data_file: Name of the file that holds them.
    """
    samples = list(islice(documents, _SAMPLES))
    header = _header(
        f"Megadocs by {config.kind}", ["megadocs", config.kind], config, counts, data_file
    )
    made_by = {name: ", ".join(found) for name, found in counts["made_by"].items() if found}
    stitched = config.kind == "stitch"
    facts = [
        ("Built by", config.kind),
        ("The document itself stands", config.real if stitched else "around the rationales"),
        ("Seed of the order", config.seed if stitched else None),
        ("Megadocs", f"{counts['documents']:,}"),
        ("Characters", f"{counts['characters']:,}"),
        ("Generated documents in them", f"{counts['members']:,}"),
        ("Tokens of these, as their generator counted", f"{counts['member_tokens']:,}"),
        (
            "Documents by generations",
            ", ".join(
                f"{n:,} with {generations}" for generations, n in counts["by_generations"].items()
            ),
        ),
        ("Methods", made_by.get("methods")),
        ("Generators", made_by.get("generators")),
        ("Prompts", made_by.get("prompts")),
        ("Generated documents left out, of an unknown source", f"{counts['unknown_sources']:,}"),
    ]
    about = (
        "Each document is one of a corpus together with what a language model wrote from it. That "
        "can be wrong, biased, or made up; it is meant for training language models, not as a "
        "source of facts."
    )
    fields = (
        "Each row holds `text`, its `parts` where they are joined by an end of text, `source_id`, "
        "and in `metadata` the ids of the generated `members`, in order."
    )
    _write(path, header, about, facts, [fields, ""], config.licence, samples)


def _header(
    name: str,
    tags: Sequence[str],
    config: "SynthesisConfig | MegadocsConfig",
    counts: Mapping[str, Any],
    data_file: str,
) -> dict[str, Any]:
    return {
        "pretty_name": name,
        "license": config.licence or "other",
        "tags": ["synthetic", "pretraining", *tags],
        "task_categories": ["text-generation"],
        "size_categories": [_size(int(counts["documents"]))],
        "configs": [{"config_name": "default", "data_files": data_file}],
    }


def _write(
    path: Path,
    header: Mapping[str, Any],
    about: str,
    facts: Iterable[tuple[str, object]],
    further: Sequence[str],
    licence: str | None,
    samples: Sequence[Document],
) -> None:
    lines = [
        "---",
        yaml.safe_dump(header, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {header['pretty_name']}",
        "",
        about,
        "",
        *(f"- {name}: {value}" for name, value in facts if value is not None),
        "",
        *further,
        "## Licence",
        "",
        _licence(licence),
        "",
        "## Samples",
        "",
        *(line for document in samples for line in _sample(document)),
    ]
    with atomic_write(path) as handle:
        handle.write("\n".join(lines).rstrip("\n") + "\n")


def _filters(config: SynthesisConfig, counts: Mapping[str, Any]) -> list[str]:
    settings = config.filters.model_dump(mode="json")
    dropped: Mapping[str, int] = counts["dropped"]
    lines = [f"Settings: {', '.join(f'{name} {value}' for name, value in settings.items())}."]
    if not dropped:
        return [*lines, "", "Nothing was dropped."]
    lines += ["", "| dropped for | documents | meaning |", "|---|---|---|"]
    return lines + [f"| {name} | {n:,} | {REASONS[name]} |" for name, n in dropped.items()]


def _licence(licence: str | None) -> str:
    given = f"Given as: {licence}. " if licence else ""
    return (
        f"{given}What may be done with these texts depends on the licences of the source documents "
        "and on the terms of the model that wrote them; whoever passes them on has to look at both."
    )


def _size(documents: int) -> str:
    return next((name for limit, name in _SIZES + _LARGER if documents < limit), "n>1B")


def _sample(document: Document) -> Sequence[str]:
    """A document as an indented block: nothing in it can become markup."""
    text = document.text[:_SAMPLE_CHARACTERS]
    more = "…" if len(document.text) > len(text) else ""
    return [
        f"From source `{_plain(document.source_id or '')}`:",
        "",
        *(f"    {line}" for line in (text + more).splitlines()),
        "",
    ]


def _plain(name: str) -> str:
    return "".join(c if c.isprintable() and c != "`" else "\ufffd" for c in name)
