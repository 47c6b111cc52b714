"""Floor 6: the command line, a module per group of commands. Parses, calls, prints.

In: arguments and their help, what a command prints. Not in: a decision, or anything another room might want to call.
Heavy imports stay inside the commands, so that `rememe --help` answers at once.
"""
