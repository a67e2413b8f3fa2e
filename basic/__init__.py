"""What the top-level files import. Importing it first settles how torch's threads wait for each
other.

By default the threads of GNU OpenMP, which torch's CPU builds use, spin for milliseconds at each
meeting point. On a machine whose cores others use too, the thread that is waited for may have no
core, and the waiting ones keep it from getting one: a training step then takes several times as
long. A short spin costs little on an idle machine (README, Troubles, has the figures). Whoever sets
OMP_WAIT_POLICY or GOMP_SPINCOUNT keeps their own choice. OpenMP reads this when torch is imported,
so this comes before.
"""

import os

if 'OMP_WAIT_POLICY' not in os.environ:
    os.environ.setdefault('GOMP_SPINCOUNT', '1000')
