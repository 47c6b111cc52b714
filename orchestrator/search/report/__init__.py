"""The HTML page about a study: what was tried, what won and why.

In: figures' choice, words, the template. Not in: drawing itself (workloads/analysis), statistics (inference/).
"""
