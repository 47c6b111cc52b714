"""Joint training of K bases and their coefficients (Remix-DiT, arXiv:2412.05628, Sec. 4).

All bases receive a multiple of one gradient: d beta_k = alpha_k d theta. So a step runs forward and backward through
the plain network once per expert, workers exchange min(G, K) gradients instead of K, and each basis's gradient exists
only while that basis is updated.
"""
