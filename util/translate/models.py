"""Translation models of transformers, run by transformers or by CTranslate2."""

import copy
import os
import warnings
from pathlib import Path

import torch

from basic import runtime
from basic.command import is_out_of_memory, memory_advice
from basic.errors import ConfigError, DataError, UnreachableError
from basic.files import locked, replace_folder
from basic.pretrained.encoders import UNUSABLE, load_whole
from basic.pretrained.hub import load_pretrained, reason, refuse_empty
from util.translate.languages import Languages

from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer

REQUIREMENTS = 'pip install -r util/requirements-translate.txt'
BATCH = {'cpu': 32, 'cuda': 128}
MEMORY = 'Give a smaller --batch-size, or --beams 1.'


def most_tokens(source):
    """The length limit of a translation, in tokens, from that of the longest source caption."""
    return 2 * source + 20


class Model:
    """What both engines share: tokenizer, languages and batches.

    Args:
        setup: engines.Setup; source, target: language tags.
    Raises:
        ConfigError: an unknown language or a model of another direction.
        DataError: the model cannot be loaded.
    """

    def __init__(self, setup, source, target):
        self.setup = setup
        self.options = {'revision': setup.revision} if setup.revision else {}
        devices = runtime.choose_devices(setup.device)
        if len(devices) > 1:
            raise ConfigError(
                f'--device {setup.device}: one process uses one device; for several, start'
                ' several processes with --shards N --shard I'
            )
        self.device = devices[0]
        where = f"'{setup.model}'"
        with loading(where):
            self.config = load_pretrained(AutoConfig, setup.model, **self.options)
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # Marian recommends sacremoses, which is optional
                self.tokenizer = load_pretrained(AutoTokenizer, setup.model, **self.options)
            refuse_empty(self.tokenizer)
        self.languages = Languages(self.config, self.tokenizer, source, target, where)
        if self.languages.source:
            self.tokenizer.src_lang = self.languages.source
        self.batch_size = setup.batch_size or BATCH[self.device.type]
        self.longest = min(self.tokenizer.model_max_length, positions(self.config))
        self.cut = 0  # captions longer than the model can read

    def load(self, dtype):
        with loading(f"'{self.setup.model}'"):
            return load_whole(AutoModelForSeq2SeqLM, self.setup.model, dtype=dtype, **self.options)

    def describe(self, **more):
        """What the model is, for the sidecar file."""
        import transformers

        return {
            'engine': self.setup.engine,
            'model': self.setup.model,
            'revision': getattr(self.config, '_commit_hash', None),
            'family': self.languages.family,
            'codes': list(self.languages.codes),
            'beams': self.setup.beams,
            'batch size': self.batch_size,
            'transformers': transformers.__version__,
            **more,
        }

    def batches(self, texts):
        """Yield (rows, token ids of each) of captions of about the same length, longest first."""
        prefix = self.languages.prefix
        ids = self.tokenizer([prefix + text for text in texts], truncation=False)['input_ids']
        self.cut += sum(len(each) > self.longest for each in ids)
        ids = [each if len(each) <= self.longest else self._cut(each) for each in ids]
        order = sorted(range(len(texts)), key=lambda row: (-len(ids[row]), row))
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            yield rows, [ids[row] for row in rows]

    def _cut(self, ids):
        """The first tokens; what follows the text (</s>, NLLB's and M2M's none) stays."""
        return ids[: self.longest - 1] + ids[-1:]

    def lines(self, texts, done=lambda n: None):
        found = [''] * len(texts)
        with memory_advice(MEMORY):
            for rows, ids in self.batches(texts):
                for row, text in zip(rows, self.generate(ids), strict=True):
                    found[row] = text
                done(len(rows))
        return found

    def decode(self, sequences):
        # M2M-100's tokenizer does not count its language tokens as special ones.
        hidden = {*getattr(self.tokenizer, 'lang_token_to_id', {}).values()}
        return [
            self.tokenizer.decode([i for i in ids if i not in hidden], skip_special_tokens=True)
            for ids in sequences
        ]


class Transformers(Model):
    """Translation by `generate`: beam search without sampling, bf16 on a GPU that has it."""

    def __init__(self, setup, source, target):
        super().__init__(setup, source, target)
        precision = setup.precision
        if precision == 'auto':
            gpu = self.device.type == 'cuda' and torch.cuda.is_bf16_supported()
            precision = 'bf16' if gpu else 'fp32'
        dtypes = {'fp32': torch.float32, 'bf16': torch.bfloat16}
        if precision not in dtypes:
            raise ConfigError(f'--precision {precision}: expected auto, fp32 or bf16')
        with memory_advice(MEMORY):
            self.model = self.load(dtypes[precision]).to(self.device).eval()
        self.generation = copy.deepcopy(self.model.generation_config)
        for key, value in {
            'do_sample': False,
            'num_beams': setup.beams,
            'num_return_sequences': 1,
            'max_length': None,
            'temperature': None,
            'top_k': None,
            'top_p': None,
            'forced_bos_token_id': self._first_token(),
        }.items():
            setattr(self.generation, key, value)
        self.record = self.describe(precision=precision, torch=torch.__version__)

    def _first_token(self):
        token = self.languages.token
        if token is None:
            return self.generation.forced_bos_token_id
        return self.tokenizer.convert_tokens_to_ids(token)

    @torch.inference_mode()
    def generate(self, ids):
        longest = len(ids[0])
        tokens = torch.full((len(ids), longest), self.tokenizer.pad_token_id)  # (N, L)
        mask = torch.zeros_like(tokens)
        for row, each in enumerate(ids):
            tokens[row, : len(each)] = torch.tensor(each)
            mask[row, : len(each)] = 1
        self.generation.max_new_tokens = min(most_tokens(longest), positions(self.config) - 1)
        found = self.model.generate(
            input_ids=tokens.to(self.device),
            attention_mask=mask.to(self.device),
            generation_config=self.generation,
        )
        return self.decode(found.tolist())


class CTranslate2(Model):
    """Translation by CTranslate2, from a model that it converts once and keeps.

    The converted model lies in `$XDG_CACHE_HOME/nrccr/ctranslate2` (default: ~/.cache/...).
    """

    def __init__(self, setup, source, target):
        ctranslate2 = optional('ctranslate2', 'the engine ctranslate2')
        super().__init__(setup, source, target)
        device = self.device.type
        precision = setup.precision
        if precision == 'auto':
            precision = 'int8' if device == 'cpu' else 'int8_float16'
        known = ctranslate2.get_supported_compute_types(device)
        if precision not in known:
            raise ConfigError(
                f'--precision {precision}: expected auto, or one of {", ".join(sorted(known))}'
            )
        folder = self._converted(ctranslate2)
        self.model = ctranslate2.Translator(
            str(folder),
            device=device,
            device_index=self.device.index or 0,
            compute_type=precision,
            intra_threads=torch.get_num_threads(),
            inter_threads=1,
        )
        self.record = self.describe(precision=precision, ctranslate2=ctranslate2.__version__)

    def _converted(self, ctranslate2):
        """The folder of the converted model, which is made if it does not exist."""
        name = self.setup.model
        local = Path(name).expanduser()
        state = str(getattr(self.config, '_commit_hash', None) or self.setup.revision or 'main')
        if local.is_dir():
            name, state = str(local.resolve()), _state(local)
        slug = f'{Path(name).name if local.is_dir() else name}-{state[:12]}'.replace('/', '--')
        cache = Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser()
        folder = cache / 'nrccr' / 'ctranslate2' / f'{slug}-{ctranslate2.__version__}'
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.parent / f'.{folder.name}.lock', wait=True):
            if not (folder / 'model.bin').is_file():
                replace_folder(folder, self._convert)
        return folder

    def _convert(self, folder):
        from ctranslate2.converters import TransformersConverter

        model, tokenizer = self.load(torch.float32), self.tokenizer
        if self.languages.family == 'm2m_100':
            tokenizer = WithLanguages(tokenizer)

        class Loaded(TransformersConverter):
            """Converts what is loaded already, with this project's checks."""

            def load_model(self, *_, **__):
                return model

            def load_tokenizer(self, *_, **__):
                return tokenizer

        try:
            Loaded(self.setup.model).convert(str(folder), force=True)
        except (ValueError, KeyError, RuntimeError, AttributeError) as error:
            if is_out_of_memory(error):
                raise
            raise DataError(
                f"CTranslate2 cannot convert '{self.setup.model}': {reason(error)}. Give"
                ' --engine transformers'
            ) from None

    def generate(self, ids):
        token = self.languages.token
        found = self.model.translate_batch(
            [self.tokenizer.convert_ids_to_tokens(each) for each in ids],
            target_prefix=[[token]] * len(ids) if token else None,
            beam_size=self.setup.beams,
            max_decoding_length=min(most_tokens(len(ids[0])), positions(self.config) - 2),
            max_input_length=0,
        )
        first = 1 if token else 0
        tokens = [each.hypotheses[0][first:] for each in found]
        return self.decode([self.tokenizer.convert_tokens_to_ids(each) for each in tokens])


class WithLanguages:
    """An M2M-100 tokenizer whose language tokens CTranslate2's converter finds.

    transformers 5 no longer lists them where the converter looks.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        tokens = sorted(tokenizer.lang_token_to_id, key=tokenizer.lang_token_to_id.get)
        self.special_tokens_map = {
            **tokenizer.special_tokens_map,
            'additional_special_tokens': tokens,
        }

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)


def positions(config):
    """The longest sequence that a model can read, in tokens; T5 has no limit."""
    return getattr(config, 'max_position_embeddings', None) or 10**6


def optional(module, what):
    """Import a package that only some users need; ConfigError if it is not installed."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise ConfigError(f'{what} needs {module}: {REQUIREMENTS}') from None


class loading:
    """Context: what transformers raises for a model that it cannot load becomes a DataError."""

    def __init__(self, where):
        self.where = where

    def __enter__(self):
        return self

    def __exit__(self, _, error, __):
        if not isinstance(error, UNUSABLE) or is_out_of_memory(error):
            return
        kind = UnreachableError if isinstance(error, UnreachableError) else DataError
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        missing = 'sentencepiece' in str(error).casefold() and isinstance(error, ImportError)
        advice = (
            f'Its tokenizer needs sentencepiece: {REQUIREMENTS}'
            if missing
            else 'Give a hub name, or a folder as transformers saves it, with tokenizer and weights'
        )
        raise kind(f'cannot load the model {self.where}: {said}\n  {advice}') from None


def _state(folder):
    """A hash of a folder's file names, sizes and times."""
    import hashlib

    found = sorted(
        (path.name, path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.iterdir()
        if path.is_file()
    )
    return hashlib.sha256(repr((str(folder.resolve()), found)).encode()).hexdigest()
