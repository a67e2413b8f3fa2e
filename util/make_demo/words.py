"""The words of the demo's languages, their forms, and the templates of sentences."""

import re

LANGUAGES = ('en', 'zh', 'ja', 'de', 'fr', 'cs')


def table(text):
    """{key: [[form, ...], ...]} from 'key: form, form | form, -x; key: ...'; '-x' adds x to the
    first form."""
    rows = (row.split(':') for row in text.split(';'))
    return {
        key.strip(): [
            [
                re.sub('^-', synonym.split(',')[0].strip(), form.strip())
                for form in synonym.split(',')
            ]
            for synonym in synonyms.split('|')
        ]
        for key, synonyms in rows
    }


# Nouns: singular, plural, in cs also genitive and instrumental; then in de, fr and cs the gender
# (of the singular and of the plural, where they differ), in zh the measure word, in ja the counter.
NOUNS = {
    'en': table(
        """dog: dog, -s | hound, -s; cat: cat, -s | kitty, kitties; bird: bird, -s;
        fish: fish, fish; rabbit: rabbit, -s | bunny, bunnies; turtle: turtle, -s | tortoise, -s;
        butterfly: butterfly, butterflies; robot: robot, -s | android, -s;
        child: child, -ren | kid, -s; car: car, -s | automobile, -s; tree: tree, -s;
        house: house, -s | cottage, -s; box: box, -es | crate, -s;
        umbrella: umbrella, -s | parasol, -s; lamp: lamp, -s | light, -s;
        chair: chair, -s | seat, -s"""
    ),
    'zh': table(
        """dog: 狗, 只 | 狗, 条; cat: 猫, 只 | 猫咪, 只; bird: 鸟, 只 | 鸟儿, 只; fish: 鱼, 条;
        rabbit: 兔子, 只; turtle: 乌龟, 只 | 海龟, 只; butterfly: 蝴蝶, 只; robot: 机器人, 个;
        child: 孩子, 个 | 儿童, 名; car: 汽车, 辆 | 车, 辆; tree: 树, 棵;
        house: 房子, 座 | 房屋, 栋; box: 箱子, 个 | 盒子, 个; umbrella: 雨伞, 把 | 伞, 把;
        lamp: 灯, 盏; chair: 椅子, 把"""
    ),
    'ja': table(
        """dog: 犬, 匹 | イヌ, 匹; cat: 猫, 匹 | ネコ, 匹; bird: 鳥, 羽; fish: 魚, 匹;
        rabbit: うさぎ, 匹 | ウサギ, 羽; turtle: 亀, 匹 | カメ, 匹; butterfly: 蝶, 匹 | チョウ, 匹;
        robot: ロボット, 台 | ロボット, 体; child: 子ども, 人 | 子供, 人; car: 車, 台 | 自動車, 台;
        tree: 木, 本; house: 家, 軒; box: 箱, 個; umbrella: 傘, 本; lamp: ランプ, 台 | 明かり, 個;
        chair: 椅子, 脚 | いす, 脚"""
    ),
    'de': table(
        """dog: Hund, -e, m; cat: Katze, -n, f | Kater, Kater, m; bird: Vogel, Vögel, m;
        fish: Fisch, -e, m; rabbit: Kaninchen, Kaninchen, n; turtle: Schildkröte, -n, f;
        butterfly: Schmetterling, -e, m | Falter, Falter, m; robot: Roboter, Roboter, m;
        child: Kind, -er, n; car: Auto, -s, n | Wagen, Wagen, m; tree: Baum, Bäume, m;
        house: Haus, Häuser, n | Gebäude, Gebäude, n; box: Kiste, -n, f | Karton, -s, m;
        umbrella: Regenschirm, -e, m | Schirm, -e, m; lamp: Lampe, -n, f | Leuchte, -n, f;
        chair: Stuhl, Stühle, m"""
    ),
    'fr': table(
        """dog: chien, -s, m; cat: chat, -s, m; bird: oiseau, -x, m; fish: poisson, -s, m;
        rabbit: lapin, -s, m; turtle: tortue, -s, f; butterfly: papillon, -s, m;
        robot: robot, -s, m | androïde, -s, m; child: enfant, -s, m | gamin, -s, m;
        car: voiture, -s, f | auto, -s, f; tree: arbre, -s, m; house: maison, -s, f;
        box: boîte, -s, f | caisse, -s, f; umbrella: parapluie, -s, m | ombrelle, -s, f;
        lamp: lampe, -s, f | luminaire, -s, m; chair: chaise, -s, f | siège, -s, m"""
    ),
    'cs': table(
        """dog: pes, psi, psa, psem, ma;
        cat: kočka, kočky, kočky, kočkou, f | kocour, kocouři, -a, -em, ma;
        bird: pták, ptáci, -a, -em, ma; fish: ryba, ryby, ryby, rybou, f;
        rabbit: králík, králíci, -a, -em, ma | zajíc, -i, -e, -em, ma;
        turtle: želva, želvy, želvy, želvou, f; butterfly: motýl, -i, -a, -em, ma;
        robot: robot, -i, -a, -em, ma; child: dítě, děti, -te, -tem, n f;
        car: auto, auta, auta, autem, n | vůz, vozy, vozu, vozem, mi; tree: strom, -y, -u, -em, mi;
        house: dům, domy, domu, domem, mi;
        box: krabice, krabice, krabice, krabicí, f | bedna, bedny, bedny, bednou, f;
        umbrella: deštník, -y, -u, -em, mi; lamp: lampa, lampy, lampy, lampou, f;
        chair: židle, židle, židle, židlí, f"""
    ),
}
# Adjectives: de the stem, with '=' where it takes no ending; fr masculine and feminine singular,
# masculine and feminine plural; cs masculine singular, animate masculine plural.
ADJECTIVES = {
    'en': table(
        """red: red | crimson; blue: blue; green: green; yellow: yellow; black: black; white: white;
        purple: purple | violet; orange: orange; small: small | little | tiny;
        big: big | large | huge"""
    ),
    'zh': table(
        """red: 红色的 | 红; blue: 蓝色的 | 蓝; green: 绿色的 | 绿; yellow: 黄色的 | 黄;
        black: 黑色的 | 黑; white: 白色的 | 白; purple: 紫色的; orange: 橙色的 | 橘色的;
        small: 小 | 小小的 | 很小的; big: 大 | 巨大的 | 很大的"""
    ),
    'ja': table(
        """red: 赤い | 赤色の; blue: 青い | 青色の; green: 緑の | 緑色の; yellow: 黄色い | 黄色の;
        black: 黒い | 真っ黒な; white: 白い | 真っ白な; purple: 紫の | 紫色の;
        orange: オレンジの | オレンジ色の; small: 小さな | 小さい; big: 大きな | 大きい"""
    ),
    'de': table(
        """red: rot | knallrot; blue: blau; green: grün; yellow: gelb; black: schwarz; white: weiß;
        purple: violett | lila, =; orange: orange, = | orangefarben; small: klein | winzig;
        big: groß | riesig"""
    ),
    'fr': table("""red: rouge, rouge, -s, -s; blue: bleu, -e, -s, -es; green: vert, -e, -s, -es;
        yellow: jaune, jaune, -s, -s; black: noir, -e, -s, -es; white: blanc, -he, -s, -hes;
        purple: violet, -te, -s, -tes | mauve, mauve, -s, -s; orange: orange | orangé, -e, -s, -es;
        small: petit, -e, -s, -es; big: grand, -e, -s, -es | immense, immense, -s, -s"""),
    'cs': table(
        """red: červený, červení | rudý, rudí; blue: modrý, modří; green: zelený, zelení;
        yellow: žlutý, žlutí; black: černý, černí; white: bílý, bílí; purple: fialový, fialoví;
        orange: oranžový, oranžoví; small: malý, malí | drobný, drobní;
        big: velký, velcí | obrovský, obrovští"""
    ),
}
# Verbs: en plural, singular, gerund; de, fr and cs singular, plural, or both alike; ja the -te
# form.
VERBS = {
    'en': table(
        """run: run, -s, -ning | race, -s, racing; jump: jump, -s, -ing | leap, -s, -ing;
        spin: spin, -s, -ning | twirl, -s, -ing; sleep: sleep, -s, -ing | doze, -s, dozing;
        dance: dance, -s, dancing;
        fall: fall, -s, -ing | tumble, -s, tumbling | fall down, falls down, falling down;
        grow: grow, -s, -ing | get bigger, gets bigger, getting bigger;
        wait: wait, -s, -ing | stand still, stands still, standing still"""
    ),
    'zh': table(
        """run: 跑 | 奔跑; jump: 跳 | 跳跃; spin: 旋转 | 打转; sleep: 睡觉 | 睡; dance: 跳舞 | 起舞;
        fall: 下落 | 坠落; grow: 长大 | 变大; wait: 等待 | 等"""
    ),
    'ja': table(
        """run: 走って | 駆けて; jump: 跳んで | 跳ねて | ジャンプして; spin: 回って | 回転して;
        sleep: 眠って | 寝て; dance: 踊って | ダンスをして; fall: 落ちて | 落下して;
        grow: 大きくなって | 成長して; wait: 待って | じっとして"""
    ),
    'de': table(
        """run: rennt, rennen | läuft, laufen; jump: springt, springen | hüpft, hüpfen;
        spin: dreht sich, drehen sich | kreiselt, kreiseln;
        sleep: schläft, schlafen | schlummert, schlummern; dance: tanzt, tanzen;
        fall: fällt, fallen | stürzt, stürzen;
        grow: wächst, wachsen | vergrößert sich, vergrößern sich; wait: wartet, warten"""
    ),
    'fr': table(
        """run: court, courent | galope, -nt; jump: saute, -nt | bondit, bondissent;
        spin: tournoie, -nt | tourne en rond, tournent en rond;
        sleep: dort, dorment | fait la sieste, font la sieste; dance: danse, -nt;
        fall: tombe, -nt | chute, -nt; grow: grandit, grandissent | s'agrandit, s'agrandissent;
        wait: attend, -ent | patiente, -nt"""
    ),
    'cs': table(
        """run: běží | utíká, utíkají; jump: skáče, skáčou | poskakuje, poskakují;
        spin: se točí | se otáčí, se otáčejí; sleep: spí | dřímá, dřímají;
        dance: tančí | tancuje, tancují; fall: padá, padají;
        grow: roste, rostou | se zvětšuje, se zvětšují; wait: čeká, čekají | vyčkává, vyčkávají"""
    ),
}
# Places: preposition (with its article) and noun; zh and ja only the noun, for their templates add
# the particle.
PLACES_IN = {
    'en': table(
        """beach: on the, beach | at the, beach | on the, sand;
        forest: in the, forest | in the, woods;
        street: on the, street | in the, street | on the, road; snow: in the, snow;
        room: in the, room | inside a, room; meadow: in the, meadow | in a, field;
        stage: on the, stage | on, stage; mountains: in the, mountains"""
    ),
    'zh': table(
        """beach: 海滩上 | 沙滩上; forest: 森林里 | 树林里; street: 街上 | 马路上;
        snow: 雪地里 | 雪中; room: 房间里 | 屋里; meadow: 草地上 | 草原上; stage: 舞台上 | 台上;
        mountains: 山里 | 山中"""
    ),
    'ja': table(
        """beach: 浜辺 | ビーチ; forest: 森 | 森の中; street: 通り | 道路; snow: 雪の中 | 雪の上;
        room: 部屋 | 部屋の中; meadow: 草原 | 草地; stage: 舞台 | ステージ;
        mountains: 山 | 山の中"""
    ),
    'de': table(
        """beach: am, Strand | auf dem, Strand; forest: im, Wald; street: auf der, Straße;
        snow: im, Schnee; room: im, Zimmer | in einem, Raum;
        meadow: auf der, Wiese | auf einer, Wiese; stage: auf der, Bühne;
        mountains: in den, Bergen | im, Gebirge"""
    ),
    'fr': table(
        """beach: sur la, plage | à la, plage; forest: dans la, forêt | dans les, bois;
        street: dans la, rue; snow: dans la, neige; room: dans la, pièce | dans une, chambre;
        meadow: dans le, pré | dans la, prairie; stage: sur la, scène | sur, scène;
        mountains: dans les, montagnes | à la, montagne"""
    ),
    'cs': table(
        """beach: na, pláži; forest: v, lese; street: na, ulici | na, silnici;
        snow: ve, sněhu | na, sněhu; room: v, pokoji | v, místnosti; meadow: na, louce;
        stage: na, jevišti | na, pódiu; mountains: v, horách | na, horách"""
    ),
}
# Where a group is as seen from the thing; 'beside' if the relation is not mentioned. cs: with the
# index of the case.
RELATIONS_IN = {
    'en': table(
        """left: to the left of | left of; right: to the right of | right of; front: in front of;
        beside: next to | near | beside"""
    ),
    'zh': table('left: 左边 | 左侧; right: 右边 | 右侧; front: 前面 | 前方; beside: 旁边 | 附近'),
    'ja': table('left: 左 | 左側; right: 右 | 右側; front: 前 | 手前; beside: 隣 | そば | 横'),
    'de': table(
        'left: links von | links neben; right: rechts von | rechts neben; front: vor; beside: neben'
        ' | bei'
    ),
    'fr': table(
        'left: à gauche de; right: à droite de; front: devant; beside: à côté de | près de'
    ),
    'cs': table(
        """left: vlevo od, 2 | nalevo od, 2; right: vpravo od, 2 | napravo od, 2; front: před, 3;
        beside: vedle, 2 | u, 2 | poblíž, 2"""
    ),
}
# Numbers: de and fr by gender m, f, n; cs by gender ma, mi, f, n. 'some': a group that is not
# counted.
NUMBERS_IN = {
    'en': table(
        'one: a | one | a single; two: two | a pair of; three: three; four: four; some: some |'
        ' several'
    ),
    'zh': table('one: 一; two: 两; three: 三; four: 四; some: 几'),
    'ja': table('one: 一; two: 二; three: 三; four: 四; some: 何'),
    'de': table('one: ein, eine, ein; two: zwei; three: drei; four: vier; some: einige | mehrere'),
    'fr': table('one: un, une; two: deux; three: trois; four: quatre; some: plusieurs | quelques'),
    'cs': table(
        'one: jeden, jeden, jedna, jedno; two: dva, dva, dvě, dvě; three: tři; four: čtyři'
    ),
}
GENDERS = {'de': ('m', 'f', 'n'), 'fr': ('m', 'f'), 'cs': ('ma', 'mi', 'f', 'n')}
# endings by case and gender
CZECH = (
    {'ma': 'ý', 'mi': 'ý', 'f': 'á', 'n': 'é'},
    {'mi': 'é', 'f': 'é', 'n': 'á'},
    {'ma': 'ého', 'mi': 'ého', 'f': 'é', 'n': 'ého'},
    {'ma': 'ým', 'mi': 'ým', 'f': 'ou', 'n': 'ým'},
)

# Sentences. Parts: S the subject (in ja without its number), N the number, V the verb, G the
# gerund, P the place, T the thing with its relation, L place and thing together, X 'to be there'. A
# template fits if its parts have something to say, save those with '?'; '-P' asks for a part with
# nothing to say. In 'P+で' the particle comes and goes with the part. 'is/are' goes by number,
# 'いる|います' by chance, and '_' is a space; the rest is as it stands.
TEMPLATES = {
    'en': (
        'S is/are G P? T?',
        'S V P? T?',
        'there is/are S G P? T?',
        'P , S is/are G T?',
        'S P? T? -V',
        'there is/are S P? T? -V',
        'P , there is/are S T? -V',
    ),
    'zh': (
        'S 在+L V',
        'S 正在+L V',
        'P ， S 正在+T V',
        'P 有 S 在+T V',
        'S 正在 V -L',
        'S 在 V -L',
        'P 有 S 在 V -T',
        'P ， S 正在 V -T',
        'S 在+L -V',
        'L 有 S -V',
        '有 S -V -L',
        'S -V -L',
    ),
    'ja': (
        'L+で? N+の? S が V いる|います',
        'N+の? S が L+で? V いる|います',
        'S が N+、 L+で V いる|います',
        'L+で? S が N V いる|います',
        'L+に X N+の? S -V',
        'L+に S が N? X -V',
        'N+の? S -V -L',
    ),
    'de': (
        'S V P? T?',
        'P V S T?',
        'T V S P?',
        'hier V S P? T?',
        'S P? T? -V',
        'hier ist/sind S P? T? -V',
        'P ist/sind S T? -V',
    ),
    'fr': (
        'S V P? T?',
        'P , S V T?',
        'il_y_a S qui V P? T?',
        'S P? T? -V',
        'il_y_a S P? T? -V',
        'P , il_y_a S T? -V',
    ),
    'cs': (
        'S V P? T?',
        'P V S T?',
        'T V S P?',
        'S P? T? -V',
        'P je/jsou S T? -V',
        'tady je/jsou S P? T? -V',
    ),
}
# What a translator puts for a function word when it errs.
FUNCTION_ERRORS = {
    'en': 'a the of to at by with from is are that it and'.split(),
    'zh': '的 了 在 着 和 是 把 从 与'.split(),
    'ja': 'は が を に で と の へ も から'.split(),
    'de': 'der die das den dem ein eine mit von zu auf und ist'.split(),
    'fr': 'le la les un une des de à en avec pour et est'.split(),
    'cs': 'na v s z do k pro a je ten ta to'.split(),
}
PUNCTUATION = frozenset(',.，。、')
