"""`python -m megatron_synth.cli`."""

from megatron_synth.cli import main

main()
