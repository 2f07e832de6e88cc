import pytest
from datasets import Dataset

from xlingtox.data.sides import ordered_pairs


@pytest.mark.parametrize("order", ["reversed", "shuffled"])
def test_the_order_of_the_pairs(order):
    rows = [{"prompt": str(i), "chosen": "good", "rejected": "bad"} for i in range(40)]
    ordered = ordered_pairs(Dataset.from_list(rows), order, seed=0)
    exchanged = [row["chosen"] == "bad" for row in ordered]
    assert [row["prompt"] for row in ordered] == [row["prompt"] for row in rows]
    assert all(row["chosen"] != row["rejected"] for row in ordered)
    assert all(exchanged) if order == "reversed" else 10 < sum(exchanged) < 30
