"""Tests run many tiny models: one thread each is faster than two that wait for each other on a busy machine."""

import torch

torch.set_num_threads(1)
