"""Launching: the steps of an experiment as processes on this machine.

In: a graph and a store. Out: the finished store. Steps run side by side as far as the cores
carry; the first failure stops the rest, and whatever was finished stays. Every process that a
step started ends with it. Cost: two small processes a running step.
"""
