"""The modules that the top-level files import; importing the package shortens OpenMP's spin.

By default the threads of GNU OpenMP, which torch's CPU builds use, spin for milliseconds when they
wait for each other. On a busy machine, the waiting threads then keep the late one from getting a
core, and a training step takes several times as long. A short spin costs little on an idle machine
(see util/benchmark/README.md for the times). If OMP_WAIT_POLICY or GOMP_SPINCOUNT is set, it is not
changed. OpenMP reads the variable when torch is imported, so this must come first.
"""

import os

if 'OMP_WAIT_POLICY' not in os.environ:
    os.environ.setdefault('GOMP_SPINCOUNT', '1000')
