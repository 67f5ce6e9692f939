from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from servematrix import data

SHARED = Path(__file__).parents[1] / ".." / "shared" / "hellaswag" / "hellaswag_val.jsonl.gz"

ROW = {
    "ind": 4,
    "activity_label": "Canoeing",
    "ctx": "Two women sit in a canoe. the man",
    "endings": ["paddles.", "sleeps.", "sings.", "flies."],
    "label": "2",
}


def rows(count: int) -> list[dict]:
    return [{**ROW, "ind": i, "label": str(i % 4)} for i in range(count)]


@pytest.fixture
def write(tmp_path):
    def write(lines, name="items.jsonl"):
        path = tmp_path / name
        text = "".join(line + "\n" for line in lines).encode()
        path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
        return str(path)

    return write


@pytest.mark.parametrize("name", ["items.jsonl", "items.jsonl.gz"])
def test_a_file(write, name):
    found = data.load(write([json.dumps(row) for row in rows(3)], name))
    assert found.source == f"file {name}"
    assert [item.label for item in found.items] == [0, 1, 2]
    assert found.items[2] == data.Item(2, "Canoeing", ROW["ctx"], tuple(ROW["endings"]), 2)


def test_the_checksum_is_of_the_content_and_not_of_the_file(write):
    compact = write([json.dumps({**row, "label": int(row["label"])}) for row in rows(3)])
    loose = write(["", *(json.dumps({**row, "split": "val"}, indent=None) for row in rows(3))])
    gzipped = write([json.dumps(row) for row in rows(3)], "x.jsonl.gz")
    assert len({data.load(path).checksum for path in (compact, loose, gzipped)}) == 1
    other = [*rows(2), {**rows(3)[2], "label": "3"}]
    assert (
        data.load(write([json.dumps(row) for row in other])).checksum != data.load(gzipped).checksum
    )


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{not json", "not JSON"),
        ("[1]", "an item is an object, found list"),
        (json.dumps({k: v for k, v in ROW.items() if k != "ctx"}), "ctx missing"),
        (json.dumps({**ROW, "endings": ["a", "b", "c"]}), "endings must be a list of 4"),
        (json.dumps({**ROW, "endings": ["a", "b", "c", 4]}), "an ending is not text"),
        (json.dumps({**ROW, "endings": ["a", "b", "c", "[step]"]}), "an ending is not text"),
        (json.dumps({**ROW, "label": ""}), "label must be 0 to 3, found ''"),
        (json.dumps({**ROW, "label": 4}), "label must be 0 to 3, found 4"),
        (json.dumps({**ROW, "ind": "4"}), "ind must be a whole number"),
        (json.dumps({**ROW, "ctx": " "}), "ctx must be text"),
        (json.dumps({**ROW, "ind": 0}), "item 0 was already given in line 1"),
    ],
)
def test_a_bad_line_is_named(write, line, told):
    path = write([json.dumps({**ROW, "ind": 0}), "", line])
    with pytest.raises(data.DataError) as caught:
        data.load(path)
    assert f"{path}, line 3: " in str(caught.value)
    assert told in str(caught.value)


def test_files_that_cannot_be_read(write, tmp_path):
    for path, told in [
        (str(tmp_path / "none.jsonl"), "no file"),
        (str(tmp_path), "cannot read"),
        (write([]), "has no items"),
    ]:
        with pytest.raises(data.DataError, match=told):
            data.load(path)
    broken = tmp_path / "broken.jsonl.gz"
    cut = gzip.compress(b"x" * 5000)[:-9]
    for content, told in ((b"no gzip", "not JSON"), (cut, "cannot read")):
        broken.write_bytes(content)
        with pytest.raises(data.DataError, match=told):
            data.load(str(broken))
    broken.with_suffix("").write_bytes(b"\xff\xfe")
    with pytest.raises(data.DataError, match="cannot read"):
        data.load(str(broken.with_suffix("")))


def test_questions_come_first_and_shots_after_them(write):
    found = data.load(write([json.dumps(row) for row in rows(12)]))
    questions, shots = found.split(8, 3)
    assert [item.ind for item in questions.items] == list(range(8))
    assert [item.ind for item in shots.items] == [8, 9, 10]
    assert questions.checksum != found.checksum
    assert found.split(12, 0)[1].items == ()


@pytest.mark.parametrize(("questions", "shots"), [(10, 3), (0, 1), (13, 0), (1, -1)])
def test_a_set_that_is_too_small_says_so(write, questions, shots):
    found = data.load(write([json.dumps(row) for row in rows(12)]))
    with pytest.raises(data.DataError, match="has 12 items"):
        found.split(questions, shots)


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        (
            "[header] How to buy a tv [title] Decide on money. [step] The more",
            "How to buy a tv. Decide on money. The more",
        ),
        ("Get it. [substeps] Rose oil.  Ylang.", "Get it. Rose oil. Ylang."),
        ("[title] Find a ring [title] Or two", "Find a ring. Or two"),
        ("as it was. [title] Get one", "as it was.. Get one"),
        ("visit [www.kiddio.org] to find", "visit [www.kiddio.org] to find"),
        (" plain ", "plain"),
    ],
)
def test_clean(raw, cleaned):
    assert data.clean(raw) == cleaned


@given(st.lists(st.sampled_from(["[title]", "[step]", " ", "a.", "[x]", "  b"])).map("".join))
def test_clean_text_stays_as_it_is(text):
    assert data.clean(data.clean(text)) == data.clean(text)


def test_the_validation_split():
    if not SHARED.exists():
        pytest.skip("the data set is not here")
    found = data.load(str(SHARED))
    assert len(found.items) == 10_042
    assert found.items[0].ctx == "A man is sitting on a roof. he"
    assert found.checksum == "0cd9d37e9f03b28388101c3919052931dda3d8e2d3a5367cb9a7a98d45026744"


def test_the_packaged_set_is_large_enough_for_the_kit():
    found = data.load(None, packaged=True)
    assert found.source.startswith("packaged")
    questions, shots = found.split(200, 20)
    assert not {item.ind for item in questions.items} & {item.ind for item in shots.items}


class TestHub:
    """What a cache of the hub holds; tests/test_models.py has how it gets there."""

    @pytest.fixture
    def cached(self, monkeypatch, tmp_path):
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        repository = tmp_path / "hub" / "datasets--Rowan--hellaswag"
        folder = repository / "snapshots" / data.HUB_REVISION / "data"

        def cached(rows, name="validation-00000-of-00001.parquet"):
            folder.mkdir(parents=True, exist_ok=True)
            parquet.write_table(pyarrow.Table.from_pylist(rows), folder / name)

        return cached

    def test_the_validation_files_of_the_pinned_revision(self, cached):
        cached([{**ROW, "ind": 99}], "train-00000-of-00001.parquet")
        cached(rows(3), "validation-00000-of-00002.parquet")
        cached([{**ROW, "ind": 3}], "validation-00001-of-00002.parquet")
        found = data.load(None)
        assert [item.ind for item in found.items] == [0, 1, 2, 3]
        assert "Rowan/hellaswag validation at revision 218ec52e" in found.source

    def test_hub_and_file_give_one_checksum(self, cached, write):
        raw = {**ROW, "ctx": "[header] How to row [title] Sit down.", "extra": 1}
        clean = {**ROW, "ctx": "How to row. Sit down."}
        cached([raw])
        assert data.load(None).checksum == data.load(write([json.dumps(clean)])).checksum

    def test_nothing_to_be_had_says_how_to_get_it(self, cached):
        with pytest.raises(data.DataError) as caught:
            data.load(None)
        assert "HF_HUB_OFFLINE is set, and data set Rowan/hellaswag" in str(caught.value)
        assert "hf download Rowan/hellaswag --revision 218ec52e" in str(caught.value)
        assert "--hellaswag PATH" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_bad_row_is_named(self, cached):
        cached([ROW, {**ROW, "ind": 5, "label": ""}])
        with pytest.raises(data.DataError, match="row 2: label"):
            data.load(None)

    def test_files_that_are_no_parquet_or_empty(self, cached, tmp_path):
        cached(rows(1))
        (file,) = (tmp_path / "hub").rglob("*.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(rows(1)).slice(0, 0), file)
        with pytest.raises(data.DataError, match="cannot load Rowan/hellaswag"):
            data.load(None)
        file.write_bytes(b"PAR1 or not")
        with pytest.raises(data.DataError, match="cannot load Rowan/hellaswag"):
            data.load(None)
