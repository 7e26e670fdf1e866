"""Experiments: what is compared with what, at equal compute.

In: one YAML, a question with its arms. Out: a graph of steps with content-addressed products; each
step runs in a process of its own (`worker`), on whatever `launch` puts it. Steps that arms share
run once. Cost: resolving the graph reads one small manifest a step.
"""
