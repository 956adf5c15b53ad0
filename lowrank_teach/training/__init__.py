"""The training loop, and what stands around it: configuration, batches, checkpoints, processes, replicas."""
