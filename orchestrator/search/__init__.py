"""Floor 5: studies, which try many configurations and train each expert once.

In, lowest first: space/ (what may vary, how points are drawn), inference/ (what measured numbers say), study/ (what a
study is and what is known of it on disk), report/ (one HTML page), running/ (carrying it out). Not in: how one
configuration is trained or scored, which is runs/; Ray, except Tune in running/tune.py.
"""
