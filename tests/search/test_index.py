"""The nearest items of an index against a sort, by one thread and by many, and the page that shows them."""

from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from spanbox.errors import DataError
from spanbox.search.index import Index
from spanbox.search.page import search_page


def make_index(features: torch.Tensor) -> Index:
    rows = [{"id": str(row), "text": f"<b>{row}</b>"} for row in range(len(features))]
    return Index(Path("x.npy"), "texts", Path(), Path(), "", features.numpy(), rows)


class TestNearest:
    @pytest.mark.parametrize("block", [1, 7, 1000])
    def test_against_a_sort(self, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("spanbox.search.index.BLOCK", block)
        features = torch.nn.functional.normalize(torch.randn(50, 4), dim=1)
        features[10:20] = features[3]  # equal scores: the first ones win
        query = features[3].numpy()
        expected = sorted(range(50), key=lambda row: (-float(features[row] @ features[3]), row))
        for count in (1, 5, 12, 50, 99):
            hits = make_index(features).nearest(query, count)
            assert [hit.row for hit in hits] == expected[:count]
            assert hits[0].score == pytest.approx(1, abs=1e-6)

    def test_features_that_are_not_finite(self) -> None:
        with pytest.raises(DataError, match="some features are not finite; embed again"):
            make_index(torch.tensor([[1.0, 0.0], [torch.nan, 0.0]])).nearest(np.ones(2, np.float32), 2)

    def test_many_at_once_find_what_each_finds_alone(self) -> None:
        features = torch.nn.functional.normalize(torch.randn(500, 16), dim=1)
        index = make_index(features)
        queries = list(features[:50].numpy())
        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(lambda query: index.nearest(query, 5), queries))
        assert found == [index.nearest(query, 5) for query in queries]

    @pytest.mark.skipif(find_spec("faiss") is None, reason="needs faiss")
    def test_approximately(self) -> None:
        features = torch.nn.functional.normalize(torch.randn(2000, 8), dim=1)
        index = make_index(features)
        found = index.nearest(features[7].numpy(), 3, approximate=True)
        assert found[0].row == 7
        assert found[0].score == pytest.approx(1, abs=1e-5)
        features[3] = torch.nan
        with pytest.raises(DataError, match="some features are not finite; embed again"):
            make_index(features).nearest(features[7].numpy(), 3, approximate=True)

    def test_the_page_escapes_what_the_data_holds(self) -> None:
        index = make_index(torch.eye(3))
        page = search_page(index, "<script>alert(1)</script>", None, index.nearest(np.eye(3, dtype=np.float32)[0], 2))
        assert "<script>alert" not in page
        assert "&lt;b&gt;0&lt;/b&gt;" in page
