"""What a study is, and what is known of it on disk: description, configurations, ledger.

In: book-keeping that a report or a later call reads. Not in: what starts, trains or scores anything (running/).
"""
