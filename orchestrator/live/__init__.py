"""The live page: what runs and studies do, in the browser, from what is on disk.

In: what the page is told, the server on loopback, the page itself. Not in: MLflow (tracking/), reading the state of a
run, which `rememe status` does too (runs/, search/).
"""
