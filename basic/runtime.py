"""What the machine needs before the model runs: a torchvision that imports, devices, precision,
seeds."""

import os
import random
import re
import sys
from contextlib import contextmanager, nullcontext

import numpy as np
import torch


def declare_missing_torchvision_ops():
    """Let `import torchvision` succeed where its compiled operators do not match the installed
    torch.

    A CUDA build of torchvision beside a CPU build of torch cannot load its operator library, and
    then fails at import with "operator torchvision::nms does not exist", which also breaks
    transformers' models. Nothing here uses those operators (transforms and ResNet do not need
    them), so declaring the two that torchvision registers shapes for is enough. Does nothing where
    the compiled operators load. Call it before the first import of torchvision.
    """
    try:
        import torchvision  # noqa: F401  (imports cleanly: nothing is missing)
    except RuntimeError as error:
        if 'torchvision::' not in str(error):
            raise
        library = torch.library.Library('torchvision', 'FRAGMENT')
        for name in ('nms', 'qnms'):
            library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
        _kept.append(library)  # the declarations live as long as this object does
    except ImportError:  # torchvision is not installed: whoever needs it will say so
        pass


_kept = []
declare_missing_torchvision_ops()


def choose_devices(name):
    """The torch devices for a driver's GPU argument, one for each process.

    Args:
        name: `auto` (the first GPU, or the CPU where there is none), `cpu`, a GPU's index such as
            `0`, several such as `0,1,2`, or `cpu:2` for two processes on the CPU.
    Returns:
        list of torch.device, at least one.
    Raises:
        ValueError: not a device name, no such GPU, or one named twice.
    """
    name = str(name).strip()
    if name == 'auto':
        name = '0' if torch.cuda.is_available() else 'cpu'
    valid = 'expected auto, cpu, cpu:N for N processes, or the indices of GPUs, such as 0 or 0,1'
    if re.fullmatch('cpu(:[1-9][0-9]?)?', name):
        return [torch.device('cpu')] * int(name.partition(':')[2] or 1)
    if not re.fullmatch('(cuda:)?[0-9]+(,[0-9]+)*', name):
        raise ValueError(f"device '{name}': {valid}")
    numbers = [int(number) for number in name.removeprefix('cuda:').split(',')]
    if len(set(numbers)) != len(numbers):
        raise ValueError(f"device '{name}': a GPU is named twice; {valid}")
    if not torch.cuda.is_available():
        raise ValueError(f"device '{name}': torch sees no GPU here; give cpu instead")
    if max(numbers) >= torch.cuda.device_count():
        raise ValueError(
            f"device '{name}': torch sees {torch.cuda.device_count()} GPU(s), "
            f'numbered from 0; give one of those, or cpu'
        )
    return [torch.device('cuda', number) for number in numbers]


def cpu_count():
    """How many processors this process may use: those that it is bound to, if the system tells."""
    if hasattr(os, 'sched_getaffinity'):  # Linux; not macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_precision(precision):
    """How float32 matrix products and convolutions are computed from now on.

    Exactly, or (`tf32`) in TF32 on a GPU, whichever of torch's two sets of switches was in use.
    """
    tf32 = precision == 'tf32'
    torch.set_float32_matmul_precision('high' if tf32 else 'highest')
    torch.backends.cudnn.allow_tf32 = tf32
    # The older switches leave convolutions to torch.backends.fp32_precision. At the end both sets
    # say the same: torch refuses to read the older one where they differ.
    for switch in _convolutions('cudnn'):
        switch.fp32_precision = 'tf32' if tf32 else 'ieee'
    for switch in _convolutions('mkldnn'):
        switch.fp32_precision = 'ieee'  # TF32 is for a GPU


def _convolutions(backend):
    """torch's newer switches of convolutions and recurrent layers; the older one is for both."""
    module = getattr(torch.backends, backend)
    return module.conv, module.rnn


@contextmanager
def matrix_precision(precision):
    """As `set_precision`, but only meanwhile."""
    before = _read_switches()
    set_precision(precision)
    try:
        yield
    finally:
        _restore_switches(before)


def _new_switches():
    return (
        torch.backends.cuda.matmul,
        torch.backends.mkldnn.matmul,
        *_convolutions('cudnn'),
        *_convolutions('mkldnn'),
    )


def _read_switches():
    """(the older switches, None for one that torch refuses to read; the newer ones)."""
    older = []
    for read in (torch.get_float32_matmul_precision, lambda: torch.backends.cudnn.allow_tf32):
        try:
            older.append(read())
        except RuntimeError:
            older.append(None)
    return older, [switch.fp32_precision for switch in _new_switches()]


def _restore_switches(before):
    (products, convolutions), newer = before
    if products is not None:
        torch.set_float32_matmul_precision(products)
    if convolutions is not None:
        torch.backends.cudnn.allow_tf32 = convolutions
    for switch, value in zip(_new_switches(), newer):
        switch.fp32_precision = value


def autocast(device, precision):
    """Context manager for a forward pass: if `precision` is `bf16`, bfloat16 where it is safe."""
    kind = torch.device(device).type
    if not torch.amp.is_autocast_available(kind):  # torch's `meta` device: shapes without numbers
        return nullcontext()
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=precision == 'bf16')


def keep_logs_tidy():
    """Hide transformers' progress bars; those of downloads stay where stderr is a terminal."""
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging

    logging.disable_progress_bar()
    if sys.stderr.isatty() and 'HF_HUB_DISABLE_PROGRESS_BARS' not in os.environ:
        enable_progress_bars()


def seed_everything(seed):
    """Seed Python's, NumPy's and torch's (CPU and GPU) generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_states(device):
    """The states of all generators that a run on `device` uses, as plain tensors and plain data."""
    version, words, gauss_next = random.getstate()
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        'python': {'version': version, 'words': list(words), 'gauss_next': gauss_next},
        'numpy': {
            'kind': kind,
            'keys': torch.from_numpy(keys.astype(np.int64)),
            'position': int(position),
            'has_gauss': int(has_gauss),
            'gauss': float(gauss),
        },
        'torch': torch.get_rng_state(),
        'cuda': torch.cuda.get_rng_state(device) if device.type == 'cuda' else None,
    }


def restore_random_states(states, device):
    """Put every generator back to where `random_states` saw it.

    Returns:
        whether all are: a GPU's numbers are not those of a CPU, but another GPU goes on with them.
    """
    python, numpy = states['python'], states['numpy']
    random.setstate((python['version'], tuple(python['words']), python['gauss_next']))
    np.random.set_state(
        (
            numpy['kind'],
            numpy['keys'].numpy().astype(np.uint32),
            numpy['position'],
            numpy['has_gauss'],
            numpy['gauss'],
        )
    )
    torch.set_rng_state(states['torch'])
    if device.type == 'cuda' and states['cuda'] is not None:
        torch.cuda.set_rng_state(states['cuda'], device)
    return (device.type == 'cuda') == (states['cuda'] is not None)
