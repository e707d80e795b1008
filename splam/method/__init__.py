"""The paper: Algorithm 1 and what it is made of, over tensors and callables.

schedule, subpath (Eq. 12-16), solver (Eq. 18), loss (Algorithm 1, Eq. 17) and sampling (Eq. 19). Nothing here knows
diffusers, captions or files.
"""
