"""Floor 2: what people see while they wait, and the tables in the end.

In: progress, tables, words for sizes and durations, streams; it listens to events. Not in: a decision; who decides
never calls it.
"""
