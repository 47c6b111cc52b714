"""What trained runs are asked afterwards: spectra, coefficients, losses on equal images, how two differ.

In: reading runs, measuring with workloads.analysis, the words and pictures that come of it.
Not in: the mathematics (workloads.analysis), or what a run draws of itself (figures.py beside this room).
"""
