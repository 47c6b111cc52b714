"""Train, sample and score multi-expert diffusion models; runs under plain torchrun, without Ray or MLflow."""
