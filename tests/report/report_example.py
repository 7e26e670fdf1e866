"""A full `ReportData`, as an experiment fills it: also the schema's example for people."""

import math

from megatron_synth.report import (
    Arm,
    Corpus,
    Cost,
    Curve,
    Drop,
    HeldOut,
    Histogram,
    LedgerRow,
    Pairs,
    Range,
    ReportData,
    StepRow,
    Synthesis,
    TextPair,
    Tuning,
)

HOSTILE = '</pre></figure><script>document.title = "owned"</script><img src=x onerror=alert(1)>'
SEED_TEXT = """Return a copy of the sequence with all occurrences of `old` replaced by `new`.

If the optional argument `count` is given, only the first `count` occurrences are replaced. The
arguments `old` and `new` may be bytes-like objects or strings of length one.

Parameters
----------
old : bytes-like
    What to look for.
new : bytes-like
    What to put there.
count : int, optional
    How many to replace; -1 means all of them.
"""
OTHER_TEXT = """Return a copy of the string with leading and trailing characters removed.

The `chars` argument is a string specifying the set of characters to be removed. If omitted or
None, whitespace is removed. The outermost leading and trailing `chars` values are stripped.
"""


def _curve(arm, stream="", end=4.1, start=8.3, points=400, kind="train", noise=0.06):
    tokens = [1_000_000 * (i + 1) / points for i in range(points)]
    loss = [
        end
        + (start - end) * math.exp(-((t / 40_000) ** 0.55))
        + noise * math.sin(i * 1.7) * math.cos(i * 0.31)
        for i, t in enumerate(tokens)
    ]
    return Curve(arm=arm, stream=stream, kind=kind, tokens=tokens, loss=loss)


def make_example(difference=(-0.0383, -0.0512, -0.0251), **changes):
    """A finished run; `difference` is SBP minus Repeat: estimate, low, high."""
    estimate, low, high = difference
    edges = [round(-0.4 + 0.02 * i, 4) for i in range(71)]
    neighbours = [round(9000 * math.exp(-((e - 0.12) ** 2) / 0.03)) for e in edges[:-1]]
    pairs = [n if e >= 0.46 else 0 for e, n in zip(edges, neighbours, strict=False)]
    content = {
        "question": "Does Synthetic Bootstrapped Pretraining beat repetition at equal compute, on "
        "this machine’s own documentation?",
        "title": "quickstart",
        "run_folder": "runs/quickstart",
        "created": "2026-11-21T02:40:11+00:00",
        "parameters": 1_328_256,
        "held_out": HeldOut(
            documents=412, tokens=98_304, description="documents of packages that no arm has seen"
        ),
        "arms": [
            Arm(
                name="repeat",
                label="Repeat",
                role="baseline",
                loss=4.1704,
                loss_error=0.0371,
                tokens=1_000_448,
                synthetic_share=0.0,
                epochs=5.0,
                unique_tokens=200_064,
            ),
            Arm(
                name="sbp",
                label="SBP",
                role="method",
                method="sbp",
                loss=4.1704 + estimate,
                loss_error=0.0365,
                difference=Range(estimate=estimate, low=low, high=high),
                recovery=Range(estimate=estimate / -0.1789, low=high / -0.1789, high=low / -0.1789),
                tokens=1_000_448,
                synthetic_share=0.375,
                epochs=3.125,
                unique_tokens=200_064,
            ),
            Arm(
                name="unique",
                label="Unique",
                role="oracle",
                loss=3.9915,
                loss_error=0.0340,
                difference=Range(estimate=-0.1789, low=-0.2011, high=-0.1573),
                tokens=1_000_448,
                synthetic_share=0.0,
                epochs=0.2,
                unique_tokens=1_000_448,
            ),
        ],
        "curves": [
            _curve("repeat", end=3.55),
            _curve("sbp", end=3.7),
            _curve("unique", end=3.86),
            _curve("repeat", end=4.17, points=10, kind="validation", noise=0),
            _curve("sbp", end=4.13, points=10, kind="validation", noise=0),
            _curve("unique", end=3.99, points=10, kind="validation", noise=0),
            _curve("sbp", "D", end=3.62),
            _curve("sbp", "S", end=3.95, start=6.0),
        ],
        "ledger": [
            LedgerRow(
                arm="repeat",
                corpus="D",
                corpus_tokens=200_064,
                planned_tokens=1_000_448,
                used_tokens=1_000_448,
                planned_epochs=5.0,
                used_epochs=5.0,
                dropped_tokens=1930,
            ),
            LedgerRow(
                arm="sbp",
                corpus="D",
                corpus_tokens=200_064,
                planned_tokens=625_152,
                used_tokens=625_152,
                planned_epochs=3.125,
                used_epochs=3.125,
                dropped_tokens=1158,
            ),
            LedgerRow(
                arm="sbp",
                corpus="S",
                synthetic=True,
                corpus_tokens=381_220,
                planned_tokens=375_296,
                used_tokens=374_784,
                planned_epochs=0.984,
                used_epochs=0.983,
                cap_epochs=1.0,
                dropped_tokens=0,
            ),
        ],
        "corpus": Corpus(
            rows=55_100,
            documents=48_000,
            validation=714,
            validation_asked=1000,
            organic=812,
            pool=4_100,
            drops=[Drop(reason="too short", count=7_100)],
        ),
        "pairs": Pairs(
            pairs=sum(pairs),
            threshold=0.4612,
            documents=812,
            documents_as_d1=655,
            histogram=Histogram(edges=edges, neighbours=neighbours, pairs=pairs),
            drops=[
                Drop(reason="below threshold", count=151_233),
                Drop(reason="share a 13-token shingle", count=412),
                Drop(reason="itself", count=812),
            ],
            samples=[
                TextPair(
                    left_title=f"bytes.replace-{i}",
                    left=SEED_TEXT,
                    right_title=f"str.strip-{i}",
                    right=HOSTILE if i == 1 else OTHER_TEXT,
                    note=f"similarity {0.92 - 0.08 * i:.2f}",
                )
                for i in range(5)
            ],
            near_duplicates=[
                TextPair(left_title="a", left=SEED_TEXT, right_title="b", right=SEED_TEXT)
            ],
        ),
        "tuning": Tuning(
            pairs=5000,
            tokens=1_204_331,
            curves=[
                _curve("tuning", end=3.9, start=5.2, points=120),
                _curve("tuning", end=4.05, start=5.2, points=6, kind="validation", noise=0),
            ],
        ),
        "synthesis": Synthesis(
            generator="the tuned model of this run, vLLM 0.32.0",
            sampling="temperature 1.0, top-p 0.9",
            requested=2200,
            kept=1874,
            tokens=381_220,
            drops=[
                Drop(reason="a 13-token shingle twice", count=203),
                Drop(reason="under 50 tokens", count=88),
                Drop(reason="did not finish", count=35),
            ],
            samples=[
                TextPair(
                    left_title="seed: bytes.replace",
                    left=SEED_TEXT,
                    right_title="synthetic: sbp-000123",
                    right=text,
                )
                for text in (OTHER_TEXT, HOSTILE, "the of a\u202eoutside\x00 in " * 40)
            ],
        ),
        "costs": [
            Cost(step="corpus.import", seconds=24.2),
            Cost(step="tokenizer", seconds=9.6),
            Cost(step="train.repeat", seconds=118.0, tokens=1_000_448, flops=8.0e12),
            Cost(step="embed", seconds=4.1, tokens=198_700),
            Cost(step="synthesize", seconds=141.5, tokens=452_110),
            Cost(step="train.sbp", seconds=119.7, tokens=1_000_448, flops=8.0e12),
            Cost(step="train.unique", seconds=118.9, tokens=1_000_448, flops=8.0e12),
        ],
        "steps": [
            StepRow(
                name=name,
                folder=f"{name}-3f9a0c21b7de",
                content_hash="9b1f6c2e77d04a5ab0e1c3d5f7a90b21",
                seconds=20.0,
            )
            for name in ("corpus.import", "tokenizer", "train.repeat", "synthesize", "train.sbp")
        ],
        "environment": {"python": "3.11.9", "torch": "2.13.0+cpu", "megatron-core": "0.16.1"},
        "config_yaml": "question: does SBP beat repetition?\narms:\n  - repeat\n  - sbp\n",
    }
    return ReportData(**{**content, **changes})
