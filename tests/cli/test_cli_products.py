"""The folder of a verb's product: whose files are in it, and which of them may go."""

import pytest

from megatron_synth.cli.products import Made, make_product
from megatron_synth.config import DataError


def _make(out, make):
    return make_product(out, kind="k", key="1", config={}, make=make)


def test_a_try_that_made_nothing_does_not_own_what_comes_to_lie_there(tmp_path):
    out = tmp_path / "o"

    def fail():
        raise DataError("no input")

    with pytest.raises(DataError, match="no input"):
        _make(out, fail)
    assert list(tmp_path.iterdir()) == [out]
    (out / "mine.bin").write_bytes(b"a user's")
    with pytest.raises(DataError, match=r"holds other files: mine\.bin"):
        _make(out, lambda: Made({}, ["a"]))
    assert (out / "mine.bin").read_bytes() == b"a user's"


def test_what_a_failed_try_left_is_replaced_by_the_next(tmp_path):
    out = tmp_path / "o"

    def fail():
        (out / "half").touch()
        raise DataError("too many bad rows")

    with pytest.raises(DataError, match="too many"):
        _make(out, fail)

    def succeed():
        (out / "a").touch()
        return Made({"rows": 3}, ["a"])

    assert _make(out, succeed) == {"rows": 3}
    assert sorted(path.name for path in out.iterdir()) == ["a", "manifest.json"]
    assert list(tmp_path.iterdir()) == [out]
    assert _make(out, fail) == {"rows": 3}  # it is done: nothing is made
