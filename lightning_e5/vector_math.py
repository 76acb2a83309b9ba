"""MKL's vector math (``exp``, ``log``, ``sqrt`` ... of torch on a CPU), made ready by one thread when this is imported.

In the first of these calls MKL finds out what processor it runs on. In its version 2024.2, which torch 2.13 is built with, a second
thread that calls meanwhile reads half an answer and computes its part of that call with kernels of another instruction set and of low
accuracy, hundreds to thousands of units in the last place off: the first loss of a training was another one in the sixth digit, in a
few of many starts. Here the first call is one of a single value, in which no second thread takes part; every later one is right.

Each module that computes such functions imports this one, itself or through others.
"""

from __future__ import annotations

import torch

torch.zeros(1, dtype=torch.float32, device="cpu").exp_()
