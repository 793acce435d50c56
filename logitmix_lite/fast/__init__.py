"""Speed: LoRA policies on one backbone, KV caches, and a decoding step recorded as a CUDA graph."""
