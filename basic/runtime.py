"""Set up the machine: import of torchvision, devices, precision, random seeds."""

import os
import random
import re
import sys
from contextlib import contextmanager, nullcontext

import numpy as np
import torch


def declare_missing_torchvision_ops():
    """Let `import torchvision` succeed if its compiled operators do not match torch.

    A CUDA build of torchvision cannot load its operator library with a CPU build of torch. Its
    import then fails with "operator torchvision::nms does not exist", which also breaks the models
    of transformers. We do not use these operators (transforms and ResNet do not need them), so it
    is enough to declare the two for which torchvision registers shapes. If the operators load,
    this does nothing. Call it before the first import of torchvision.
    """
    try:
        import torchvision  # noqa: F401  (succeeds if nothing is missing)
    except RuntimeError as error:
        if 'torchvision::' not in str(error):
            raise
        library = torch.library.Library('torchvision', 'FRAGMENT')
        for name in ('nms', 'qnms'):
            library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
        _kept.append(library)  # the declarations live as long as this object
    except ImportError:  # torchvision is not installed: its users report that
        pass


_kept = []
declare_missing_torchvision_ops()


def choose_devices(name):
    """The torch devices of a --device argument, one for each process.

    Args:
        name: `auto` (the first GPU, or the CPU if there is none), `cpu`, a GPU's index such as
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
        raise ValueError(f"device '{name}': torch finds no GPU; give cpu instead")
    if max(numbers) >= torch.cuda.device_count():
        raise ValueError(
            f"device '{name}': torch finds {torch.cuda.device_count()} GPU(s), "
            f'numbered from 0; give one of those, or cpu'
        )
    return [torch.device('cuda', number) for number in numbers]


def cpu_count():
    """The number of processors that this process may use."""
    if hasattr(os, 'sched_getaffinity'):  # Linux; not macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_precision(precision):
    """Set how float32 matrix products and convolutions are computed.

    With `tf32` it is TF32 on a GPU, else full float32. Both of torch's sets of switches are set.
    """
    tf32 = precision == 'tf32'
    torch.set_float32_matmul_precision('high' if tf32 else 'highest')
    torch.backends.cudnn.allow_tf32 = tf32
    # The older switches do not set convolutions. At the end both sets must agree, because torch
    # refuses to read the older one if they differ.
    for switch in _convolutions('cudnn'):
        switch.fp32_precision = 'tf32' if tf32 else 'ieee'
    for switch in _convolutions('mkldnn'):
        switch.fp32_precision = 'ieee'  # TF32 is for a GPU


def _convolutions(backend):
    """torch's newer switches for convolutions and recurrent layers; an older one sets both."""
    module = getattr(torch.backends, backend)
    return module.conv, module.rnn


@contextmanager
def matrix_precision(precision):
    """As `set_precision`, but only within the context."""
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
    """Context manager for a forward pass, which uses bfloat16 where safe if precision is `bf16`."""
    kind = torch.device(device).type
    if not torch.amp.is_autocast_available(kind):  # torch's `meta` device: shapes without numbers
        return nullcontext()
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=precision == 'bf16')


def keep_logs_tidy():
    """Hide transformers' progress bars, except those of downloads on a terminal."""
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
    """The states of all random generators of a run on `device`, as tensors and plain data."""
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
    """Restore the generators' states of `random_states`.

    Returns:
        whether all states could be restored, which is not so if one of the two runs is on a GPU
        and the other on a CPU.
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
