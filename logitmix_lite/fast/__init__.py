"""Speed: LoRA policies on one backbone, KV caches, a decoding step as a CUDA graph, log-probs in chunks."""
