import os
import textwrap

from megatron_synth.corpus import Quarantine, installed_documentation
from megatron_synth.corpus.installed import InstalledCounts, installed_roots, list_sources

LONG = "A sentence of documentation that goes on for a while. " * 5


def _site(folder):
    root = folder / "site-packages"
    for name, source in {
        "pack/__init__.py": f'"""{LONG}"""\nraise RuntimeError("imported")\n',
        "pack/inner/mod.py": f'''
            def outer():
                """Outer: {LONG}

                    indented
                last
                """
                class Inside:
                    r"""Inside: {LONG}"""
            if True:
                class Kept:
                    async def method(self):
                        \'\'\'Method: {LONG}\'\'\'
            else:
                def other():
                    """Other: {LONG}"""
            try:
                pass
            except ValueError:
                def in_handler():
                    """Handler: {LONG}"""
            def short():
                """Too short."""
            def not_a_docstring():
                x = """{LONG}"""
            ''',
        "single.py": f'"""Single: {LONG}"""',
        "broken.py": f'def f(:\n    """{LONG}"""',
        "weird.py": f'"""Weird \\x00 {LONG}"""',
        "megatron_synth/x.py": f'"""Own: {LONG}"""',
        "pack/__pycache__/y.py": f'"""Cache: {LONG}"""',
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
    return root


def test_every_long_docstring_is_a_document_and_nothing_is_imported(tmp_path):
    counts, quarantine = InstalledCounts(), Quarantine()
    documents = list(
        installed_documentation(
            roots=[_site(tmp_path)], counts=counts, quarantine=quarantine, min_characters=200
        )
    )
    assert [d.id for d in documents] == [
        "single:",
        "pack:",
        "pack.inner.mod:outer",
        "pack.inner.mod:outer.Inside",
        "pack.inner.mod:Kept.method",
        "pack.inner.mod:other",
        "pack.inner.mod:in_handler",
    ]
    assert {d.metadata["package"] for d in documents} == {"pack", "single"}
    assert documents[2].text == f"Outer: {LONG}\n\n    indented\nlast"
    assert counts.files == 5
    assert [p.rpartition("/")[2] for p in counts.unparsed] == ["broken.py"]
    assert dict(quarantine.reasons) == {"NUL character in the text": 1}


def test_roots_are_the_standard_library_and_site_packages_each_once():
    roots = installed_roots()
    assert len({r.resolve() for r in roots}) == len(roots)
    assert any((r / "json" / "decoder.py").is_file() for r in roots)
    assert any((r / "pytest").is_dir() for r in roots)
    assert all(r.name in ("site-packages", "dist-packages") for r in roots[1:])


def test_the_standard_librarys_own_site_packages_is_not_walked_twice():
    modules = [m for _, m in list_sources([installed_roots()[0]])]
    assert "json.decoder" in modules
    assert not any(m.startswith("site-packages") for m in modules)


def test_modules_with_names_that_are_no_unicode_have_ids_that_are(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.py")).write_text(f'"""{LONG}"""')
    (document,) = installed_documentation(roots=[tmp_path], min_characters=200)
    assert document.id == "caf\\xe9:"
