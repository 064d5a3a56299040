"""One GPU in eight minutes: each block within a time box of its own, recorded as soon as anything is known.

Runs on whatever device there is. Times are those of CUDA events on a GPU, of the clock elsewhere.
"""
