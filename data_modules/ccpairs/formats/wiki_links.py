"""Which of a page's links are no part of its sentences: those to files, to categories and to other languages."""

from __future__ import annotations

import re

#: Name spaces of files and categories, by the names that they have in the large Wikipedias.
_SPACES = frozenset(
    re.findall(
        r"\S+",
        "file image media category datei bild medium kategorie fichier catégorie média archivo imagen categoría medio ficheiro imagem categoria "
        "multimédia immagine bestand afbeelding categorie plik grafika kategoria файл изображение категория зображення категорія soubor kategori berkas fil "
        "dosya kategória fájl tiedosto kuva luokka ファイル 画像 カテゴリ 文件 图像 檔案 分类 分類 파일 그림 분류 ملف صورة تصنيف קובץ תמונה קטגוריה پرونده رده tập_tin thể_loại",
    )
)
#: Codes of Wikipedia's languages; a link to one of them stands at the page's side.
_LANGUAGES = frozenset(
    re.findall(
        r"\S+",
        "aa ab ace af ak als am an ang ar arc arz as ast av avk awa ay az azb ba ban bar bcl be bg bh bi bm bn bo bpy br bs bug bxr ca cdo ce ceb ch cho chr chy ckb co cr crh cs "
        "csb cu cv cy da de din diq dsb dv dz ee el eml en eo es et eu ext fa ff fi fj fo fr frp frr fur fy ga gag gan gd gl glk gn gom gor got gu gv ha hak haw he hi hif ho hr hsb ht "
        "hu hy hz ia id ie ig ii ik ilo inh io is it iu ja jam jbo jv ka kaa kab kbd kg ki kj kk kl km kn ko koi kr krc ks ksh ku kv kw ky la lad lb lbe lez lfn lg li lij lmo ln lo lrc lt "
        "ltg lv mai mdf mg mh mhr mi min mk ml mn mnw mr mrj ms mt mus mwl my myv mzn na nah nap nds ne new ng nl nn no nov nqo nrm nso nv ny oc olo om or os pa pag pam pap pcd pdc pfl pi "
        "pih pl pms pnb pnt ps pt qu rm rmy rn ro ru rue rup rw sa sah sat sc scn sco sd se sg sh shn si simple sk sl sm sn so sq sr srn ss st stq su sv sw szl ta tcy te tet tg th ti tk tl "
        "tn to tpi tr ts tt tum tw ty tyv udm ug uk ur uz ve vec vep vi vls vo wa war wo wuu xal xh xmf yi yo za zea zh zu be-tarask be-x-old bat-smg cbk-zam fiu-vro map-bms nds-nl roa-rup "
        "roa-tara zh-classical zh-min-nan zh-yue",
    )
)
_PREFIX = re.compile(r"\s*([^\s:|][^:|]{0,30}?)\s*:")


def is_hidden(target: str) -> bool:
    """Whether a link with this target is not shown where it stands; ``[[:File:a.jpg]]`` and ``[[CSI: Miami]]`` are."""
    match = _PREFIX.match(target)
    if match is None:
        return False
    prefix = match[1].lower().replace(" ", "_")
    return prefix in _SPACES or prefix in _LANGUAGES
