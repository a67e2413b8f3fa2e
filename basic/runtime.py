"""What the machine needs before the model runs: a torchvision that imports, a device, seeds."""
import random

import numpy as np
import torch


def declare_missing_torchvision_ops():
    """Let `import torchvision` succeed where its compiled operators do not match the installed torch.

    A CUDA build of torchvision beside a CPU build of torch cannot load its operator library, and then fails at import
    with "operator torchvision::nms does not exist", which also breaks transformers' models. Nothing here uses those
    operators (transforms and ResNet do not need them), so declaring the two that torchvision registers shapes for is
    enough. Does nothing where the compiled operators load. Call it before the first import of torchvision.
    """
    try:
        import torchvision  # noqa: F401  (imports cleanly: nothing is missing)
    except RuntimeError as error:
        if 'torchvision::' not in str(error):
            raise
        library = torch.library.Library('torchvision', 'FRAGMENT')
        for name in ('nms', 'qnms'):
            library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
        _kept.append(library)            # the declarations live as long as this object does
    except ImportError:                  # torchvision is not installed: whoever needs it will say so
        pass


_kept = []
declare_missing_torchvision_ops()


def choose_device(name):
    """The torch device for a driver's GPU argument.

    Args:
        name: `cpu`, or a GPU's index such as `0`.
    Raises:
        ValueError: not a device name, no such GPU, or several GPUs (one process drives one device).
    """
    name = str(name).strip()
    if name == 'cpu':
        return torch.device('cpu')
    if ',' in name:
        raise ValueError(f"device '{name}': training on several GPUs is not supported yet; give one, such as 0, or cpu")
    number = name.removeprefix('cuda:')
    if not (number.isascii() and number.isdigit()):
        raise ValueError(f"device '{name}': expected cpu or the index of a GPU, such as 0")
    if not torch.cuda.is_available():
        raise ValueError(f"device '{name}': torch sees no GPU here; give cpu instead")
    if int(number) >= torch.cuda.device_count():
        raise ValueError(f"device '{name}': torch sees {torch.cuda.device_count()} GPU(s), "
                         f"numbered from 0; give one of those, or cpu")
    return torch.device('cuda', int(number))


def seed_everything(seed):
    """Seed Python's, NumPy's and torch's (CPU and GPU) generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_states():
    """The states of all generators, as plain tensors and plain data; for `restore_random_states`."""
    version, words, gauss_next = random.getstate()
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    return {'python': {'version': version, 'words': list(words), 'gauss_next': gauss_next},
            'numpy': {'kind': kind, 'keys': torch.from_numpy(keys.astype(np.int64)), 'position': int(position),
                      'has_gauss': int(has_gauss), 'gauss': float(gauss)},
            'torch': torch.get_rng_state(),
            'cuda': torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def restore_random_states(states):
    """Put every generator back to where `random_states` saw it; GPUs that are not here are left out."""
    python, numpy = states['python'], states['numpy']
    random.setstate((python['version'], tuple(python['words']), python['gauss_next']))
    np.random.set_state((numpy['kind'], numpy['keys'].numpy().astype(np.uint32), numpy['position'],
                         numpy['has_gauss'], numpy['gauss']))
    torch.set_rng_state(states['torch'])
    if states['cuda'] and len(states['cuda']) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states['cuda'])
