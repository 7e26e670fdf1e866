"""Recount what was served, from the windows themselves.

In: a plan and its packed corpora. Out: an `Audit`, and a table of how often each organic source
was trained on. Nothing here shares arithmetic with planner, schedule, streams, ledger or
packing's reader: the `.idx` is parsed anew, the windows are served twice (the real tokens, and
the same windows of a corpus whose every token is its own position in the `.bin`), and what came is
looked at. From the positions it is known which token of which document stands where, so that one
token too many or too few is seen.
"""

from megatron_synth.blending.recount.auditing import Audit, audit

__all__ = ["Audit", "audit"]
