"""Runs of tests take the CPU, also beside a GPU: there they repeat to the last bit.

Tests of devices choose theirs, see :mod:`tests.devices`.
"""

import os

os.environ.setdefault('ACCELERATE_USE_CPU', 'true')
