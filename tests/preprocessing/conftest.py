"""A handful of concepts as a knowledge base, so small that a test can hold all answers in its head."""

from __future__ import annotations

from pathlib import Path

import pytest

from preprocessing.umls.build_kb import build_kb

NAMES = {
    "C0017861": ("Glycerin", "Glycerol", "1,2,3-Propanetriol"),
    "C0011603": ("Dermatitis", "Inflammation of skin"),
    "C0020538": ("Hypertension", "High blood pressure"),
    "C0027051": ("Myocardial infarction", "Heart attack"),
    "C0004057": ("Aspirin", "Acetylsalicylic acid"),
    "C0009871": ("Magnetic resonance imaging",),
    "C0001614": ("ALL", "IV", "17"),
}


@pytest.fixture(scope="session")
def small_kb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A knowledge base of seven concepts, built from RRF files."""
    folder = tmp_path_factory.mktemp("small_kb")
    meta, kb = folder / "META", folder / "kb"
    meta.mkdir()
    atoms = [(cui, name, place == 0) for cui, names in NAMES.items() for place, name in enumerate(names)]
    conso = [
        f"{cui}|ENG|P|L{n}|PF|S{n}|{'Y' if first else 'N'}|A{n}||||MSH|PT|X|{name}|0|N||"
        for n, (cui, name, first) in enumerate(atoms)
    ]
    sty = [f"{cui}|T047|B2.2.1.2.1|Disease or Syndrome|AT{cui[1:]}||" for cui in NAMES]
    rel = ["C0011603|A1|AUI|RO|C0017861|A2|AUI|may_prevent|R1||MSH|MSH|||N||"]
    for name, rows in {"MRCONSO": conso, "MRSTY": sty, "MRREL": rel}.items():
        (meta / f"{name}.RRF").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    build_kb(meta, kb, overwrite=False)
    return kb
