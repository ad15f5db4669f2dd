"""Base models in torch: materialise, load, score, generate. One of the few packages that may import torch."""
