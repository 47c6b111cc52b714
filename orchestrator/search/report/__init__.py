"""The HTML pages about a study, a comparison and a run: what was tried, what won and why.

In: figures' choice, words, the template. Not in: drawing itself (workloads/analysis), statistics (inference/).
"""
