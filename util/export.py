"""Export a trained model: one folder to keep, to give to others, or to put on the hub.

    python -m util.export RUN_OR_FILE DIR [--licence ID] [--push OWNER/NAME [--public]]

RUN_OR_FILE is a run folder or a checkpoint file, ours or a released one. DIR gets the weights
(safetensors), the config, the tokenizer, the configurations of the encoders, and a model card,
README.md, to which you can add. evaluation.py --checkpoint DIR and load_model(DIR) read it, and
give the same numbers as the run. With --push it is uploaded to the Hugging Face Hub, where
load_model('OWNER/NAME') finds it; you need to be logged in (hf auth login, or HF_TOKEN).

The exit status is 0, or 2 for a mistake of the user.
"""

import argparse
import re
import sys
from pathlib import Path

from basic.command import command, telling
from basic.errors import DataError, UserError, first_five

# Modules that import torch, which takes seconds, are imported where they are used, so that wrong
# arguments are reported at once.

UNKNOWN = 'unknown'  # how the hub names a licence that was not stated
VISUAL = {'frames': 'videos', 'pooled': 'images', 'clip': 'images'}


def export(source, folder, *, licence=UNKNOWN, tokenizer=None, overwrite=False, hub_name=None):
    """Write an exported folder.

    Args:
        source: run folder or checkpoint file.
        folder: to write; its files are all new, or the old ones stay.
        licence: for the model card.
        tokenizer: hub name or folder; None: the one saved with the run, else `text.bert`.
        overwrite: replace an exported folder.
        hub_name: OWNER/NAME, for the model card.
    Returns:
        list of str, notes on what others will see or miss.
    Raises:
        UserError: (DataError, CheckpointError) something that the user can put right.
    """
    from basic.checkpoint import load_checkpoint
    from basic.config import config_to_dict
    from basic.exported import write_model
    from basic.files import replace_folder, write_atomically
    from basic.pretrained.tokenizer import load_tokenizer, save_tokenizer
    from basic.run_folder import TOKENIZER
    from evaluation import saved_tokenizer
    from model import refuse_misfit

    refuse_occupied(folder, overwrite)
    checkpoint = load_checkpoint(source)
    config = checkpoint.config
    refuse_misfit(config, checkpoint)
    tokenizer = load_tokenizer(
        tokenizer or saved_tokenizer(checkpoint) or config.text.bert, config.text.lowercase
    )
    tree, notes = shareable(config_to_dict(config))
    report, missing = read_report(checkpoint)
    notes += missing
    if licence == UNKNOWN:
        notes.append('the model card names no licence: state one with --licence')
    content = {
        'config': tree,
        'architecture': checkpoint.architecture,
        'model': checkpoint.model,
        'epoch': checkpoint.epoch,
        'val': checkpoint.val,
        'choice': checkpoint.choice,
    }
    card = model_card(
        checkpoint, tree, report, licence=licence, name=folder.name, hub_name=hub_name
    )

    def fill(new):
        write_model(new, content)
        save_tokenizer(tokenizer, new / TOKENIZER)
        write_atomically(new / 'README.md', card)

    folder.parent.mkdir(parents=True, exist_ok=True)
    replace_folder(folder, fill)
    return notes


def refuse_occupied(folder, overwrite):
    """DataError unless a folder is new or empty, or an exported one that may be replaced."""
    from basic.exported import NEEDED, is_exported
    from basic.run_folder import REPORTS, TOKENIZER

    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir():
        raise DataError(f'{folder} is a file: give a new folder')
    names = {path.name for path in folder.iterdir()}
    if not names:
        return
    others = sorted(names - {*NEEDED, 'README.md', TOKENIZER, *REPORTS})
    if others or not is_exported(folder):
        raise DataError(
            f'{folder} holds other files ({first_five(others or sorted(names))}): give a new folder'
        )
    if not overwrite:
        raise DataError(f'{folder} holds an exported model: --overwrite replaces it')


def shareable(tree):
    """A config tree without the folders of encoders, and notes on what else names this machine.

    The folder's weights, configurations and tokenizer are all that a model needs; the names of the
    encoders tell what they were.
    """
    tree = {name: dict(part) if isinstance(part, dict) else part for name, part in tree.items()}
    for group, key in (('text', 'bert'), ('visual', 'clip')):
        if Path(tree[group][key]).is_absolute():
            tree[group][key] = Path(tree[group][key]).name
    local = [
        f'{group}.{key}={value}'
        for group, part in tree.items()
        if isinstance(part, dict)
        for key, value in part.items()
        if isinstance(value, str) and Path(value).is_absolute()
    ]
    return tree, [f'config.yaml names a folder of this machine: {each}' for each in local]


def read_report(checkpoint):
    """(the test's report beside a checkpoint, None without one; notes on what is missing)."""
    from basic.checkpoint import BEST, RELEASED
    from basic.exported import WEIGHTS
    from basic.foreign import read_json
    from basic.run_folder import METRICS
    from util.table.runs import REPORT

    path = checkpoint.path.parent / METRICS['test']
    absent = f'the model card has no test result: {path}'
    if not path.is_file():
        return None, [f'{absent} does not exist']
    try:
        report = read_json(
            path, {**REPORT, 'collection': str, 'lang': str, 'result': {'weight': float}}
        )
    except DataError as error:
        return None, [f'{absent} is of another kind ({error})']
    known = checkpoint.path.name in (BEST, RELEASED, WEIGHTS)
    if not known or report['epoch'] != checkpoint.epoch:
        return None, [f'{absent} is that of another epoch']
    return report, []


# -------------------------------------------------------------------------------------- model card


def model_card(checkpoint, tree, report, *, licence, name, hub_name=None):
    """README.md: what the model is, how to use it, its results, its data.

    Args:
        checkpoint: basic.checkpoint.Checkpoint; tree: its config, as exported.
        report: of its test, or None.
        licence, hub_name: as `export` has; name: the title.
    """
    import yaml

    from basic.languages import languages

    text, visual, data = tree['text'], tree['visual'], tree['data']
    spoken, items = languages(checkpoint.config), VISUAL[visual['kind']]
    stored = checkpoint.config.text.bert
    head = {
        'license': licence,
        'language': list(dict.fromkeys([*spoken, 'en'])),
        'tags': ['cross-modal-retrieval', f'text-to-{items.removesuffix("s")}-retrieval', 'nrccr'],
    }
    if not Path(stored).is_absolute() and not Path(stored).exists():  # a hub name
        head['base_model'] = stored
    seen = {
        'frames': f'`{visual["feature"]}` features of frames',
        'pooled': f'`{visual["feature"]}`, one feature an image',
        'clip': f'images, through `{visual["clip"]}`',
    }[visual['kind']]
    call = {
        'frames': 'encode_videos(list_of_frame_features)',
        'pooled': 'encode_features(features)',
        'clip': "encode_images(['a.jpg', 'b.jpg'])",
    }[visual['kind']]
    return f"""---
{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---

# {name}

It finds {items} by captions ({', '.join(spoken)}), and captions by {items}. Both are encoded
into one space of {tree['space']['dim']:,} dimensions. It was trained with NRCCR, "Cross-Lingual
Cross-Modal Retrieval with Noise-Robust Learning" (ACM MM 2022, arXiv 2208.12526), on English
captions and their machine translations.

## Use

In a checkout of the code that it was exported with:

```python
from evaluation import load_model

model = load_model({(hub_name or 'FOLDER')!r})
queries = model.encode_text(['...'], lang={spoken[0]!r})
gallery = model.{call}
scores = model.score(queries, gallery)
```

`python evaluation.py --checkpoint FOLDER --rootpath ROOTPATH` tests it on its collection.

## Results

{result_text(checkpoint, report)}

## Data

| | |
|---|---|
| collection | {data['collection']} |
| languages | {', '.join(spoken)}; English through translations |
| visual items | {seen} |
| text encoder | `{text['bert']}` |
| training | model of epoch {checkpoint.epoch}, seed {tree['train']['seed']} |

## Licence

{'Not stated' if licence == UNKNOWN else licence}. The encoders and the data that the model was
made from have licences of their own.
"""


def result_text(checkpoint, report):
    """The table of a test, or what is known of validation."""
    from basic.report import table

    if report:
        return f'```text\n{table(report)}\n```'
    val = checkpoint.val or {}
    if isinstance(val.get('SumR'), float):
        return f'No test result. On validation: SumR {val["SumR"]:.1f}.'
    return 'No test result.'


# ------------------------------------------------------------------------------------------ upload


def push(folder, name, *, public=False):
    """Upload an exported folder to the hub; the repository is made if there is none.

    Args:
        folder: of `export`.
        name: OWNER/NAME.
        public: whether everyone may read a repository that is made now.
    Returns:
        its address.
    Raises:
        UserError: it cannot be uploaded; the folder stays.
    """
    from huggingface_hub import HfApi, get_token

    from basic.exported import FILES

    try:
        api = HfApi()
        address = api.create_repo(name, private=not public, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            folder_path=str(folder),
            allow_patterns=list(FILES),
            commit_message='Export of a trained model',
        )
    except Exception as error:  # what a failed request raises differs between versions
        reason = ' '.join(str(error).split())[:300]
        token = get_token()
        if token:
            reason = reason.replace(token, '***')
        raise UserError(
            f'{folder} is written, but cannot be uploaded to {name} ({type(error).__name__}:'
            f' {reason}); log in with: hf auth login, then give the same command with --overwrite'
        ) from None
    return str(address)


def refuse_bad_name(name):
    """DataError unless it is OWNER/NAME as the hub takes it."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
        valid = name.count('/') == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise DataError(f"--push '{name}': expected OWNER/NAME, of letters, digits, '-', '_', '.'")


@command('export')
def main(argv=None):
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog='python -m util.export',
        description='Export a trained model: weights, config, tokenizer and model card.',
        epilog='Example: python -m util.export demo/vatex/runs/vatex_zh/seed_1 exported/vatex_zh',
    )
    parser.add_argument('checkpoint', metavar='RUN_OR_FILE', help='run folder or checkpoint')
    parser.add_argument('folder', metavar='DIR', type=Path, help='folder to write')
    parser.add_argument(
        '--licence',
        '--license',
        default=UNKNOWN,
        metavar='ID',
        help='for the model card, such as cc-by-nc-4.0 (default: %(default)s)',
    )
    parser.add_argument(
        '--tokenizer', metavar='NAME', help='default: the one saved with the run, else text.bert'
    )
    parser.add_argument('--overwrite', action='store_true', help='replace an exported folder')
    parser.add_argument(
        '--push', metavar='OWNER/NAME', help='upload it to the Hugging Face Hub, as a private model'
    )
    parser.add_argument('--public', action='store_true', help='with --push: readable by everyone')
    args = parser.parse_args(argv)
    if args.public and not args.push:
        parser.error('--public goes with --push')
    if not re.fullmatch(r'[\w.+-]{1,60}', args.licence):
        parser.error(f"--licence '{args.licence}': expected a short name, such as cc-by-nc-4.0")
    if args.push:
        refuse_bad_name(args.push)
    refuse_occupied(args.folder, args.overwrite)

    with telling(f'exporting {args.checkpoint}'):
        notes = export(
            args.checkpoint,
            args.folder,
            licence=args.licence,
            tokenizer=args.tokenizer,
            overwrite=args.overwrite,
            hub_name=args.push,
        )
    for note in notes:
        print(f'note: {note}', file=sys.stderr)
    megabytes = sum(f.stat().st_size for f in args.folder.rglob('*') if f.is_file()) / 1e6
    print(f'written: {args.folder} ({megabytes:,.1f} MB)')
    where = str(args.folder)
    if args.push:
        print(f'uploaded: {push(args.folder, args.push, public=args.public)}')
        where = args.push
    print(f'to use it: from evaluation import load_model; model = load_model({where!r})')
    return 0


if __name__ == '__main__':
    sys.exit(main())
