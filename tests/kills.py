"""Kills a process before a change of a file's or folder's name, each of them in turn."""

import os
import signal
import sys
from multiprocessing import get_context

import torch

CHANGES = ('mkdir', 'replace', 'rename', 'rmdir', 'unlink')


def _run(call, number):
    done = 0

    def counted(change):
        def changed(*arguments, **options):
            nonlocal done
            done += 1
            if done == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*arguments, **options)

        return changed

    torch.set_num_threads(1)  # the parent's others are not in the fork, and would be waited for
    for name in CHANGES:
        setattr(os, name, counted(getattr(os, name)))
    sys.exit(call())


def killed_before(number, call):
    """Run a function in a fork that is killed before its change of this number, from 1.

    Returns:
        whether it was killed; False if it made fewer changes, and returned 0.
    """
    process = get_context('fork').Process(target=_run, args=(call, number))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0
