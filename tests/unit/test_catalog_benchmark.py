"""The benchmark of the catalog runs, in small, and says what it should."""

import json

from benchmarks import catalog


def test_it_prints_one_document_with_its_figures(capsys):
    assert catalog.main(["--adapters", "300", "--pages", "5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["adapters"] == 300
    for figure in ("search_p95_ms", "page_p95_ms", "import_s", "rss_mb"):
        assert found[figure] > 0, figure


def test_its_adapters_are_the_same_for_the_same_seed():
    first, again = ([a.name for a in catalog.adapters(20)] for _ in range(2))
    assert first == again
    assert len(set(first)) > 10
