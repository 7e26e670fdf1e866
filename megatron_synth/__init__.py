"""More effective pretraining tokens from a fixed corpus, on Megatron-Core.

Data enters at the top of this list of rooms and leaves at the bottom; a room imports only from
rooms above it: config, runs, runtime, tokens, corpus, engines, judging, pairing, synthesis,
packing, blending, models, training, policy, evaluation, scaling, report, experiments, launch.
"""

__version__ = "0.1.0"
