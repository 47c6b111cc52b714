"""`rememe compare`: several strategies under one budget and one protocol, in one table.

In: checking rows before anything is trained, their plan beside the paper's figures, carrying them out, the table.
Not in: one configuration (the room around it), or choosing configurations (search/).
"""
