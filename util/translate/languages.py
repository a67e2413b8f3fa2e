"""Language codes: from the tags in file names, such as 'es', to those of each model family."""

import re

from basic.errors import ConfigError
from basic.ids import did_you_mean

FAMILIES = ('marian', 'nllb', 'm2m_100', 'madlad')
# ISO 639-1 -> NLLB's code, whose first part is ISO 639-3.
NLLB = dict(
    pair.split('=')
    for pair in """
    af=afr_Latn am=amh_Ethi ar=arb_Arab as=asm_Beng az=azj_Latn ba=bak_Cyrl be=bel_Cyrl bg=bul_Cyrl
    bm=bam_Latn bn=ben_Beng bo=bod_Tibt bs=bos_Latn ca=cat_Latn cs=ces_Latn cy=cym_Latn da=dan_Latn
    de=deu_Latn dz=dzo_Tibt el=ell_Grek en=eng_Latn eo=epo_Latn es=spa_Latn et=est_Latn eu=eus_Latn
    fa=pes_Arab fi=fin_Latn fj=fij_Latn fo=fao_Latn fr=fra_Latn ga=gle_Latn gd=gla_Latn gl=glg_Latn
    gn=grn_Latn gu=guj_Gujr ha=hau_Latn he=heb_Hebr hi=hin_Deva hr=hrv_Latn ht=hat_Latn hu=hun_Latn
    hy=hye_Armn id=ind_Latn ig=ibo_Latn is=isl_Latn it=ita_Latn ja=jpn_Jpan jv=jav_Latn ka=kat_Geor
    kk=kaz_Cyrl km=khm_Khmr kn=kan_Knda ko=kor_Hang ky=kir_Cyrl lb=ltz_Latn lg=lug_Latn ln=lin_Latn
    lo=lao_Laoo lt=lit_Latn lv=lvs_Latn mg=plt_Latn mi=mri_Latn mk=mkd_Cyrl ml=mal_Mlym mn=khk_Cyrl
    mr=mar_Deva ms=zsm_Latn mt=mlt_Latn my=mya_Mymr ne=npi_Deva nl=nld_Latn nn=nno_Latn no=nob_Latn
    oc=oci_Latn om=gaz_Latn or=ory_Orya pa=pan_Guru pl=pol_Latn ps=pbt_Arab pt=por_Latn ro=ron_Latn
    ru=rus_Cyrl rw=kin_Latn sa=san_Deva sd=snd_Arab si=sin_Sinh sk=slk_Latn sl=slv_Latn sn=sna_Latn
    so=som_Latn sq=als_Latn sr=srp_Cyrl st=sot_Latn su=sun_Latn sv=swe_Latn sw=swh_Latn ta=tam_Taml
    te=tel_Telu tg=tgk_Cyrl th=tha_Thai ti=tir_Ethi tk=tuk_Latn tl=tgl_Latn tn=tsn_Latn tr=tur_Latn
    tt=tat_Cyrl ug=uig_Arab uk=ukr_Cyrl ur=urd_Arab uz=uzn_Latn vi=vie_Latn wo=wol_Latn xh=xho_Latn
    yi=ydd_Hebr yo=yor_Latn zh=zho_Hans zu=zul_Latn yue=yue_Hant zh-hant=zho_Hant zh-tw=zho_Hant
    """.split()
)
# Other spellings of a language, in file names and in Marian's models.
ALIASES = {'cn': 'zh', 'jp': 'ja', 'cz': 'cs', 'enc': 'en', 'nb': 'no', 'iw': 'he', 'in': 'id'}
OTHERS = {
    'zh': ('cmn_Hans', 'cmn', 'zho', 'zh_CN'),
    'zh-hant': ('cmn_Hant', 'zh_TW'),
    'ar': ('ara',),
    'fa': ('fas',),
    'ms': ('msa', 'zlm_Latn'),
    'sw': ('swa',),
    'lv': ('lav',),
    'et': ('ekk',),
    'no': ('nor', 'nb'),
    'sq': ('sqi',),
    'az': ('aze_Latn', 'aze'),
    'sr': ('srp_Latn',),
}


def normal(lang):
    """A language tag in the form of the table's keys: 'zh' for 'cn', 'pt' for 'pt-BR'."""
    tag = lang.strip().replace('_', '-').casefold()
    known = {code.replace('_', '-').casefold(): short for short, code in NLLB.items()}
    tag = known.get(tag, tag)
    if tag in NLLB or tag in ALIASES:
        return ALIASES.get(tag, tag)
    base = tag.partition('-')[0]
    letters = {code[:3]: short for short, code in reversed(NLLB.items())}
    return ALIASES.get(base, letters.get(base, base))


def spellings(lang):
    """The codes that models use for a language, the given tag first."""
    short = normal(lang)
    nllb = NLLB.get(short, '')
    found = (lang, short, nllb, nllb[:3], *OTHERS.get(short, ()))
    return [code for code in dict.fromkeys(found) if code]


def model_code(lang, known, where):
    """The code of a language among those that a model knows.

    Args:
        lang: tag, such as 'es', 'zh', 'pt-BR', or the model's own code.
        known: the model's codes.
        where: the model, for messages.
    Raises:
        ConfigError: the model does not know the language.
    """
    found = next((code for code in spellings(lang) if code in known), None)
    if found is None:
        near = did_you_mean(spellings(lang), known)
        raise ConfigError(
            f"{where} does not know the language '{lang}'{near}; it knows {len(known)}: "
            f'{", ".join(sorted(known)[:12])}{" ..." * (len(known) > 12)}. Give --from and --to'
            ' (default: en and data.lang), or another model'
        )
    return found


class Languages:
    """What a model needs to know about its two languages.

    Attributes:
        family: one of FAMILIES.
        prefix: text before each caption, such as '>>spa<< '.
        source: the tokenizer's `src_lang`, or None.
        token: the first token of each translation, or None.
        codes: (source, target), as the model writes them.
    Args:
        config, tokenizer: of transformers.
        source, target: language tags.
        where: the model, for messages.
    Raises:
        ConfigError: an unknown family or language, or a model of another direction.
    """

    def __init__(self, config, tokenizer, source, target, where):
        self.family = family(config, tokenizer, where)
        self.prefix, self.source, self.token = '', None, None
        self.codes = source, target
        vocabulary = tokenizer.get_vocab()
        if self.family == 'marian':
            self._marian(tokenizer, source, target, where)
        elif self.family == 'madlad':
            codes = {m[1]: token for token in vocabulary if (m := re.fullmatch('<2(.+)>', token))}
            code = model_code(target, codes, where)
            self.prefix, self.codes = f'{codes[code]} ', (normal(source), code)
        else:
            if self.family == 'nllb':
                tokens = {t: t for t in vocabulary if re.fullmatch('[a-z]{3}_[A-Z][a-z]{3}', t)}
            else:
                tokens = dict(tokenizer.lang_code_to_token)
            self.codes = tuple(model_code(lang, tokens, where) for lang in (source, target))
            self.source, self.token = self.codes[0], tokens[self.codes[1]]

    def _marian(self, tokenizer, source, target, where):
        """A model of one direction, or one that a first token tells the target language."""
        for lang, own, side in (
            (source, tokenizer.source_lang, 'from'),
            (target, tokenizer.target_lang, 'to'),
        ):
            if own and _is_one(own) and normal(own) != normal(lang):
                raise ConfigError(
                    f"{where} translates {side} '{own}', but '{lang}' is needed here: check"
                    ' --model (into the target language) and --back-model (into English)'
                )
        codes = {token[2:-2]: token for token in tokenizer.supported_language_codes}
        own = tokenizer.target_lang
        if codes and (
            any(code in codes for code in spellings(target)) or not (own and _is_one(own))
        ):
            self.prefix = f'{codes[model_code(target, codes, where)]} '
        self.codes = tokenizer.source_lang or source, self.prefix.strip(' <>') or own or target


def family(config, tokenizer, where):
    """The model's family, one of FAMILIES."""
    kind = config.model_type
    if kind == 'marian':
        return 'marian'
    if kind == 'm2m_100':
        return 'm2m_100' if hasattr(tokenizer, 'lang_code_to_token') else 'nllb'
    if kind == 't5' and any(token.startswith('<2') for token in tokenizer.get_vocab()):
        return 'madlad'
    raise ConfigError(
        f"{where} is a model of type '{kind}'; expected a translation model: Marian (OPUS-MT),"
        ' NLLB, M2M-100 or MADLAD'
    )


def _is_one(lang):
    """Whether a Marian model's language is one language, not a group such as 'roa' or 'mul'."""
    return normal(lang) in NLLB
